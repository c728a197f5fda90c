#include "products/drive.hpp"

#include <algorithm>
#include <cstring>

#include "core/caches.hpp"
#include "core/parallel.hpp"
#include "core/workspace.hpp"
#include "layouts/patches.hpp"
#include "products/dispatch.hpp"
#include "products/runs.hpp"
#include "simd/bits.hpp"

namespace gossamer {
namespace {

int workers_for(const Panels& w, std::int64_t batch) noexcept {
  return workers_for_products(w.nnz(), batch);
}

// The scratch slices of different threads start on different pages.
std::size_t slice(std::size_t bytes) noexcept {
  return static_cast<std::size_t>(round_up(static_cast<std::int64_t>(bytes), 4096));
}

// Tiles of the batch are the natural tasks. Where they cannot be dealt out evenly each is cut in
// `workers` parts as well; every part packs its tile again, so this is done for few tiles only.
std::int64_t parts_for(std::int64_t tiles, std::int64_t units, int workers) noexcept {
  const bool uneven = tiles < 4 * workers && tiles % workers != 0;
  return uneven ? std::min<std::int64_t>(units, workers) : 1;
}

const Matrix& output(const SpmmArgs& args) noexcept { return args.y; }
const Matrix& output(const SpmmTArgs& args) noexcept { return args.grad_input; }

bool adds(const Matrix& y) noexcept { return y.patches != nullptr && y.patches->adds; }

// Rows of a task that adds to images: whole images, because neighbouring rows add to one pixel, in
// the order of rows. A few together where that fills the last tile better. It must not depend on
// the number of threads.
std::int64_t rows_of_images(const Matrix& y, std::int64_t tile) noexcept {
  const std::int64_t pixels = y.patches->pixels();
  const std::int64_t most = std::clamp<std::int64_t>(y.rows / pixels / 4, 1, 4);
  std::int64_t best = 1;
  for (std::int64_t images = 2; images <= most; ++images) {
    const std::int64_t tiles = ceil_div(images * pixels, tile);
    if (tiles * best < ceil_div(best * pixels, tile) * images) best = images;
  }
  return best * pixels;
}

// Zeros in images [first, last), of elements of so many bytes.
void zero_images(const Matrix& y, std::int64_t first, std::int64_t last,
                 std::size_t bytes) noexcept {
  const Patches& p = *y.patches;
  const auto at = [&](std::int64_t offset) {
    return static_cast<std::byte*>(y.data) + offset * static_cast<std::int64_t>(bytes);
  };
  const std::int64_t row = p.size[2] * p.strides[2];
  const std::int64_t plane = p.size[0] * p.size[1] * p.size[2];
  const bool whole = (p.size[1] == 1 || p.strides[1] == row) &&
                     (p.size[0] == 1 || p.strides[0] == p.size[1] * row);
  const bool by_planes = whole && p.strides[2] == 1 && p.channel_stride == plane;
  const bool by_pixels = whole && p.strides[2] == p.channels && p.channel_stride == 1;
  for (std::int64_t image = first; image < last; ++image) {
    const std::int64_t begin = image * p.image_stride;
    if (by_planes || by_pixels) {
      std::memset(at(begin), 0, static_cast<std::size_t>(plane * p.channels) * bytes);
      continue;
    }
    for (std::int64_t c = 0; c < p.channels; ++c) {
      for (std::int64_t i = 0; i < plane; ++i) {
        const std::int64_t w = i % p.size[2], h = i / p.size[2] % p.size[1];
        std::memset(at(begin + c * p.channel_stride + i / p.size[2] / p.size[1] * p.strides[0] +
                       h * p.strides[1] + w * p.strides[2]),
                    0, bytes);
      }
    }
  }
}

template <class Args>
void run_tiles(const Kernel<Args>& kernel, const Args& args, std::int64_t batch, std::int64_t units,
               int workers, std::size_t sum_bytes, std::byte* scratch) noexcept {
  const bool images = adds(output(args));
  const std::int64_t height = kernel.batch_tile(args);
  const std::int64_t rows = images ? rows_of_images(output(args), height) : height;
  const std::int64_t tiles = ceil_div(batch, rows);
  const std::int64_t parts = images ? 1 : parts_for(tiles, units, workers);
  const std::size_t bytes = slice(kernel.scratch(args));
  parallel_for(tiles * parts, workers, [&](std::int64_t task, int worker) noexcept {
    const std::int64_t tile = task / parts;
    const std::int64_t part = task % parts;
    const Task piece{tile * rows, std::min(batch, (tile + 1) * rows), units * part / parts,
                     units * (part + 1) / parts};
    if (images) {
      const std::int64_t pixels = output(args).patches->pixels();
      zero_images(output(args), piece.batch0 / pixels, piece.batch1 / pixels, sum_bytes);
    }
    kernel.run(args, piece, scratch + static_cast<std::size_t>(worker) * bytes);
  });
}

// Batches of so few rows have kernels of their own at V = 8, bound by reading the weight once.
constexpr std::int64_t few_rows = 8;

// The kernel of a verb: that of runs of panels where there is one and the panels have equal lists.
// Leaves w.run as the kernel wants it.
template <class Find>
const auto& kernel_for(const Find& find, DType dtype, const Matrix& batch, int workers, Panels& w) {
  const auto& of_panels = find({dtype, vector_index(w.vector)}, nullptr);
  const auto& of_runs = find({dtype, run_index}, nullptr);
  w.run = 1;
  if (w.vector != vectors[run_index - 1] || of_runs.run == of_panels.run ||
      batch.rows <= few_rows || batch.patches != nullptr) {
    return of_panels;
  }
  std::byte* found = Workspace::get(static_cast<std::size_t>(w.blocks()) * sizeof(std::int64_t));
  w.run = find_run(w, reinterpret_cast<std::int64_t*>(found), workers);
  return w.run > 1 ? of_runs : of_panels;
}

// Prepares the values if the kernel asks for it, and runs its tasks. `units`: see Task.
template <class Args>
void run_kernel(const Kernel<Args>& kernel, Args& args, std::int64_t batch, std::int64_t units,
                int workers, DType dtype) {
  const Panels& w = args.weight;
  const bool prepares = kernel.prepare != nullptr;
  const std::size_t starts =
      prepares ? slice(static_cast<std::size_t>(w.runs() + 1) * sizeof(std::int64_t)) : 0;
  const std::size_t values = prepares ? slice(kernel.prepared_bytes(args)) : 0;
  std::byte* memory = Workspace::get(
      starts + values + slice(kernel.scratch(args)) * static_cast<std::size_t>(workers));
  if (prepares) {
    auto* first = reinterpret_cast<std::int64_t*>(memory);
    list_starts(w, first);
    args.prepared = {first, memory + starts};
    parallel_for(w.runs(), workers, [&](std::int64_t run, int) noexcept {
      kernel.prepare(args, run, memory + starts);
    });
  }
  run_tiles(kernel, args, batch, units, workers, compute_itemsize(dtype), memory + starts + values);
}

// Elements a task copies or converts at once.
constexpr std::int64_t piece = 1 << 15;

template <class T>
void gather_values(const void* from, std::int64_t count, const std::int32_t* perm, std::int64_t nnz,
                   void* to, int workers) noexcept {
  const T* source = static_cast<const T*>(from);
  T* values = static_cast<T*>(to);
  const auto last = static_cast<std::uint32_t>(count - 1);
  // Clamped, so that a corrupted permutation stays inside the values.
  const auto from_index = [&](std::int64_t i) {
    return std::min(static_cast<std::uint32_t>(perm[i]), last);
  };
  // A column of W visits up to 256 rows, each on a line of its own: asked for this many entries
  // ahead, the lines arrive in time, and the gather takes a third of the time.
  constexpr std::int64_t ahead = 512;
  parallel_for(ceil_div(nnz, piece), workers, [&](std::int64_t task, int) noexcept {
    const std::int64_t end = std::min(nnz, (task + 1) * piece);
    const std::int64_t fetched = std::min(end, nnz - ahead);
    std::int64_t i = task * piece;
    for (; i < fetched; ++i) {
      __builtin_prefetch(source + from_index(i + ahead));
      values[i] = source[from_index(i)];
    }
    for (; i < end; ++i) values[i] = source[from_index(i)];
  });
}

}  // namespace

// --8<-- [start:drive]
void run_spmm(SpmmArgs args, DType dtype, const Queue&) {
  const std::int64_t batch = args.x.rows;
  Panels& w = args.weight;
  if (batch == 0 || w.rows == 0) return;
  const TrimWorkspace trim;
  const int workers = workers_for(w, batch);
  const auto& kernel = kernel_for(find_spmm, dtype, args.x, workers, w);
  run_kernel(kernel, args, batch, w.runs(), workers, dtype);
}
// --8<-- [end:drive]

void run_spmm_t(SpmmTArgs args, DType dtype, const Queue&) {
  const std::int64_t batch = args.grad_output.rows;
  Panels& w = args.weight;
  if (batch == 0 || w.cols == 0) return;
  const TrimWorkspace trim;
  const int workers = workers_for(w, batch);
  const auto& kernel = kernel_for(find_spmm_t, dtype, args.grad_output, workers, w);
  run_kernel(kernel, args, batch, w.blocks(), workers, dtype);
}

void run_spmm_t_packed(const SpmmTArgs& args, const Panels& transposed, const std::int32_t* perm,
                       DType dtype, const Queue&) {
  const std::int64_t batch = args.grad_output.rows;
  if (batch == 0 || transposed.rows == 0) return;
  const TrimWorkspace trim;
  const auto& kernel = find_spmm({dtype, vector_index(transposed.vector)});
  const int workers = workers_for(transposed, batch);
  const std::int64_t nnz = transposed.nnz();
  const std::int64_t count = args.weight.nnz();  // more than nnz where the transpose is pruned
  SpmmArgs product{args.grad_output, nullptr, transposed, nullptr, args.grad_input};
  const std::size_t values = slice(static_cast<std::size_t>(nnz) * itemsize(dtype));
  const std::size_t bytes = slice(kernel.scratch(product)) * static_cast<std::size_t>(workers);
  std::byte* memory = Workspace::get(values + bytes);
  switch (itemsize(dtype)) {
    case 2: gather_values<std::uint16_t>(args.values, count, perm, nnz, memory, workers); break;
    case 4: gather_values<std::uint32_t>(args.values, count, perm, nnz, memory, workers); break;
    default: gather_values<std::uint64_t>(args.values, count, perm, nnz, memory, workers); break;
  }
  product.values = memory;
  run_tiles(kernel, product, batch, transposed.panels(), workers, compute_itemsize(dtype),
            memory + values);
}

void run_sddmm(SddmmArgs args, DType dtype, const Queue&) {
  const std::int64_t batch = args.x.rows;
  Panels& w = args.weight;
  const std::int64_t nnz = w.stored_nnz();
  if (nnz == 0 || w.rows == 0) return;
  if (batch == 0) {
    std::memset(args.grad_values, 0, static_cast<std::size_t>(nnz) * itemsize(dtype));
    return;
  }
  const TrimWorkspace trim;
  const int workers = workers_for(w, batch);
  const auto& kernel = kernel_for(find_sddmm, dtype, args.x, workers, w);
  const std::int64_t tile = kernel.chunk_rows(args);
  const std::size_t chunk_bytes = kernel.chunk_bytes(args);

  // As many chunks at a time as stay near a core, but one for each thread that packs: what is
  // packed lies in the second-level cache when it is read, and so does the memory of the chunks
  // before. Images are read by many short runs: half of that cache served convolutions of 99 %
  // best, and linear layers of 98 % worse.
  const std::int64_t near =
      args.x.patches == nullptr ? std::int64_t{2} << 20 : second_level_cache() / 2;
  const std::int64_t all_chunks = ceil_div(batch, tile);
  const std::int64_t affordable =
      near / std::max<std::int64_t>(static_cast<std::int64_t>(chunk_bytes), 1);
  const std::int64_t step =
      std::clamp(affordable, std::min<std::int64_t>(workers, all_chunks), all_chunks);

  const bool one_type = compute_itemsize(dtype) == itemsize(dtype);
  const bool lend = !one_type && batch > tile;
  const std::size_t packed_bytes = slice(chunk_bytes * static_cast<std::size_t>(step));
  std::byte* packed = Workspace::get(
      packed_bytes + (lend ? static_cast<std::size_t>(nnz) * compute_itemsize(dtype) : 0));
  args.sums = one_type ? args.grad_values : lend ? packed + packed_bytes : nullptr;

  const std::int64_t blocks = w.blocks();
  const std::int64_t splits = std::clamp<std::int64_t>(ceil_div(4 * workers, blocks), 1, w.runs());
  for (std::int64_t first = 0; first < batch; first += step * tile) {
    const std::int64_t rows = std::min(step * tile, batch - first);
    const std::int64_t chunks = ceil_div(rows, tile);
    parallel_for(chunks, workers, [&](std::int64_t chunk, int) noexcept {
      const std::int64_t begin = chunk * tile;
      kernel.pack(args, first + begin, std::min(tile, rows - begin), chunk, chunks, packed);
    });
    parallel_for(blocks * splits, workers, [&](std::int64_t task, int) noexcept {
      const std::int64_t part = task % splits;
      const SddmmTask piece{first,
                            rows,
                            task / splits,
                            w.run * (w.runs() * part / splits),
                            w.run * (w.runs() * (part + 1) / splits),
                            first > 0,
                            first + rows == batch};
      kernel.run(args, piece, chunks, packed);
    });
  }
}

}  // namespace gossamer
