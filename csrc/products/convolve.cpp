#include "products/convolve.hpp"

#include <algorithm>
#include <cstring>

#include "layouts/patches.hpp"
#include "products/drive.hpp"

namespace gossamer {
namespace {

// A row that begins where the one before ends is part of it.
void join_rows(Patches& p) noexcept {
  for (int i = 1; i >= 0; --i) {
    const bool joins = p.size[i] == 1 || p.strides[i] == p.size[2] * p.strides[2];
    if (!joins) return;
    p.size[2] *= p.size[i];
    p.out[2] *= p.out[i];
    p.size[i] = p.out[i] = 1;
  }
}

// The channels of one group as the matrix of patches that makes an output of size `out`.
Patches patches_of(const Images& x, const Convolution& how, const std::int64_t* out) noexcept {
  Patches p;
  p.channels = x.shape[1] / how.groups;
  p.image_stride = x.strides[0];
  p.channel_stride = x.strides[1];
  bool plain = true;
  for (int i = 0; i < 3; ++i) {
    p.kernel[i] = how.kernel[i];
    p.stride[i] = how.stride[i];
    p.dilation[i] = how.dilation[i];
    p.padding[i] = how.padding[i];
    p.size[i] = x.shape[i + 2];
    p.out[i] = out[i];
    p.strides[i] = x.strides[i + 2];
    plain &= p.kernel[i] == 1 && p.stride[i] == 1 && p.padding[i] == 0 && p.size[i] == p.out[i];
  }
  if (plain) join_rows(p);
  return p;
}

Panels rows_of_group(const Panels& w, std::int64_t group, std::int64_t groups) noexcept {
  if (groups == 1) return w;
  Panels part = w;
  part.rows = w.rows / groups;
  part.first_panel = group * part.panels();
  part.all_panels = w.panels();
  return part;
}

// The images of a convolution as its matrix, and its outputs as rows and columns of another.
struct Sides {
  Patches in, out;
};

// Whether to pack images once for all taps, on a grid of rows with gaps (products/cpu/windows.hpp),
// instead of once for each tap. Packing is then cheap, but products are made in the gaps too, and
// of registers that lie across lines of the cache. In nanoseconds per output pixel, as `python -m
// bench convolutions` and single verbs were measured on Zen 4 with AVX-512; a pack of short rows
// costs more. A decision for every number of threads alike.
bool windows_pay(const Patches& in, const std::int64_t* grid, const Panels& w,
                 bool transposed) noexcept {
  const auto pixels = static_cast<double>(in.pixels());
  const double waste = static_cast<double>(grid[0] * grid[1] * grid[2]) / pixels;
  const double apart = in.stride[2] == 1 ? 1.0 : 1.5;  // pixels that are not copied by registers
  const double pack =
      apart * (0.15 + 2.0 / static_cast<double>(in.out[2])) * static_cast<double>(w.cols);
  const auto entries = static_cast<double>(w.nnz());
  const bool few = w.total_entries() < 20 * w.blocks() * w.panels();
  const double product = entries * (w.vector > 1 ? 0.018 : few ? 0.044 : 0.033);
  const double across = transposed ? 1.1 : w.vector > 1 || few ? 1.13 : 1.5;
  const double share = static_cast<double>(in.planes()) / static_cast<double>(in.taps());
  const double once = 1.5 * waste * pack * share;
  return once + product * waste * across < pack + product;
}

// Their rows are the pixels of an output, or such a grid.
Sides sides_of(const Images& x, const Images& y, const Convolution& how, const Panels& w,
               DType dtype, bool transposed = false) noexcept {
  Convolution plain;
  plain.groups = how.groups;
  Sides sides{patches_of(x, how, y.shape + 2), patches_of(y, plain, y.shape + 2)};
  const Patches& in = sides.in;
  if (in.taps() == 1 || dtype == DType::bf16) return sides;
  std::int64_t grid[3];
  for (int i = 0; i < 3; ++i) {
    const std::int64_t s = in.stride[i];
    const std::int64_t last = (in.kernel[i] - 1) * in.dilation[i] - in.padding[i];
    const std::int64_t behind = last >= 0 ? last / s : -ceil_div(-last, s);
    grid[i] = std::max(
        {ceil_div(in.size[i], s) + ceil_div(in.padding[i], s), in.out[i] + behind, in.out[i]});
  }
  if (!windows_pay(in, grid, rows_of_group(w, 0, how.groups), transposed)) return sides;
  sides = {patches_of(x, how, grid), patches_of(y, plain, grid)};
  sides.in.shared = true;
  return sides;
}

// Then a gradient is written, not added to zeros: by any part of the rows.
bool reads_each_pixel_once(const Patches& p) noexcept {
  bool once = p.taps() == 1;
  for (int i = 0; i < 3; ++i) once &= p.stride[i] == 1 && p.padding[i] == 0;
  return once;
}

Matrix group_of(const Images& x, const Patches& p, std::int64_t group, std::size_t bytes) noexcept {
  const auto offset = group * p.channels * p.channel_stride * static_cast<std::int64_t>(bytes);
  return {static_cast<std::byte*>(x.data) + offset,
          x.shape[0] * p.pixels(),
          p.taps() * p.channels,
          0,
          0,
          &p};
}

}  // namespace

void convolve(const Images& x, const void* values, const Panels& weight, const void* bias,
              const Images& y, const Convolution& how, DType dtype, const Queue& queue) {
  const auto [in, out] = sides_of(x, y, how, weight, dtype);
  if (x.shape[0] * out.pixels() == 0) return;
  const std::size_t bytes = itemsize(dtype);
  for (std::int64_t g = 0; g < how.groups; ++g) {
    const Panels part = rows_of_group(weight, g, how.groups);
    const void* own = bias == nullptr ? nullptr
                                      : static_cast<const std::byte*>(bias) +
                                            static_cast<std::size_t>(g * part.rows) * bytes;
    run_spmm({group_of(x, in, g, bytes), values, part, own, group_of(y, out, g, bytes)}, dtype,
             queue);
  }
}

void convolve_input(const Images& grad_output, const void* values, const Panels& weight,
                    const TransposedPanels& transposed, const Images& grad_input,
                    const Convolution& how, DType dtype, const Queue& queue) {
  const bool packed = transposed.perm != nullptr && how.groups == 1;
  auto [to, from] = sides_of(grad_input, grad_output, how, weight, dtype, packed);
  to.adds = dtype == DType::bf16 || !reads_each_pixel_once(to);
  if (grad_output.shape[0] * from.pixels() == 0) return;  // no output: the caller's zeros stay
  for (std::int64_t g = 0; g < how.groups; ++g) {
    const Matrix rows = group_of(grad_output, from, g, itemsize(dtype));
    const Matrix images = group_of(grad_input, to, g, compute_itemsize(dtype));
    const SpmmTArgs args{rows, values, rows_of_group(weight, g, how.groups), images};
    if (packed) {
      run_spmm_t_packed(args, transposed.panels, transposed.perm, dtype, queue);
    } else {
      run_spmm_t(args, dtype, queue);
    }
  }
}

void convolve_weight(const Images& grad_output, const Images& x, const Panels& weight,
                     void* grad_values, const Convolution& how, DType dtype, const Queue& queue) {
  const auto [in, from] = sides_of(x, grad_output, how, weight, dtype);
  const std::size_t bytes = itemsize(dtype);
  if (x.shape[0] * from.pixels() == 0) {
    std::memset(grad_values, 0, static_cast<std::size_t>(weight.stored_nnz()) * bytes);
    return;
  }
  for (std::int64_t g = 0; g < how.groups; ++g) {
    run_sddmm({group_of(grad_output, from, g, bytes), group_of(x, in, g, bytes),
               rows_of_group(weight, g, how.groups), grad_values},
              dtype, queue);
  }
}

}  // namespace gossamer
