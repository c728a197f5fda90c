// Every verb once, plain: one loop nest a formula, sums in double, no packing, no blocking. The
// fast tables are tested against this one, and it serves whatever they leave out.
#include "layouts/patches.hpp"
#include "products/table.hpp"
#include "simd/bits.hpp"

namespace gossamer {
namespace {

template <class T>
double read(const T* p) noexcept {
  return widen(*p);
}
template <class T>
void write(T* p, double x) noexcept {
  narrow(static_cast<Compute<T>>(x), *p);
}

// An element of a matrix; of patches it may lie in the padding, which reads as zero.
template <class T>
double read(const Matrix& x, std::int64_t row, std::int64_t col) noexcept {
  const T* data = static_cast<const T*>(x.data);
  if (x.patches == nullptr) return read(data + row * x.row_stride + col * x.col_stride);
  const std::int64_t at = x.patches->at(row, col);
  return at < 0 ? 0.0 : read(data + at);
}
template <class T>
void write(const Matrix& y, std::int64_t row, std::int64_t col, double value) noexcept {
  T* data = static_cast<T*>(y.data);
  if (y.patches == nullptr) return write(data + row * y.row_stride + col * y.col_stride, value);
  const std::int64_t at = y.patches->at(row, col);
  if (at < 0) return;
  if (y.patches->adds) {
    auto* sums = static_cast<Compute<T>*>(y.data);
    sums[at] = static_cast<Compute<T>>(sums[at] + value);
  } else {
    write(data + at, value);
  }
}

// A byte may name a column past the last one of a narrow block; such an entry counts as absent.
template <class F>
void for_each_entry(const Panels& w, std::int64_t block, std::int64_t panel, F&& f) noexcept {
  const auto [begin, count] = w.entries(block, panel);
  for (std::int64_t e = begin; e < begin + count; ++e) {
    const std::int64_t col = block * w.block_cols + w.indices[e];
    if (col < w.cols) f(e, col);
  }
}

// --8<-- [start:reference]
template <class T>
void spmm(const SpmmArgs& a, const Task& task, void*) noexcept {
  const Panels& w = a.weight;
  const T* values = static_cast<const T*>(a.values);
  const T* bias = static_cast<const T*>(a.bias);
  for (std::int64_t b = task.batch0; b < task.batch1; ++b) {
    for (std::int64_t p = task.part0; p < task.part1; ++p) {
      for (std::int64_t v = 0; v < w.vector; ++v) {
        const std::int64_t row = p * w.vector + v;
        double sum = bias != nullptr ? read(bias + row) : 0.0;
        for (std::int64_t k = 0; k < w.blocks(); ++k) {
          for_each_entry(w, k, p, [&](std::int64_t e, std::int64_t col) {
            sum += read(values + e * w.vector + v) * read<T>(a.x, b, col);
          });
        }
        write<T>(a.y, b, row, sum);
      }
    }
  }
}
// --8<-- [end:reference]

template <class T>
void spmm_t(const SpmmTArgs& a, const Task& task, void* scratch) noexcept {
  const Panels& w = a.weight;
  const T* values = static_cast<const T*>(a.values);
  double* sums = static_cast<double*>(scratch);
  for (std::int64_t b = task.batch0; b < task.batch1; ++b) {
    for (std::int64_t k = task.part0; k < task.part1; ++k) {
      const std::int64_t first = k * w.block_cols;
      for (std::int64_t c = 0; c < w.block_width(k); ++c) sums[c] = 0.0;
      for (std::int64_t p = 0; p < w.panels(); ++p) {
        for_each_entry(w, k, p, [&](std::int64_t e, std::int64_t col) {
          for (std::int64_t v = 0; v < w.vector; ++v) {
            sums[col - first] +=
                read(values + e * w.vector + v) * read<T>(a.grad_output, b, p * w.vector + v);
          }
        });
      }
      for (std::int64_t c = 0; c < w.block_width(k); ++c) {
        write<T>(a.grad_input, b, first + c, sums[c]);
      }
    }
  }
}

template <class T>
void sddmm(const SddmmArgs& a, const SddmmTask& task, std::int64_t, const void*) noexcept {
  using C = Compute<T>;
  const Panels& w = a.weight;
  C* sums = static_cast<C*>(a.sums);
  T* grad_values = static_cast<T*>(a.grad_values);
  for (std::int64_t p = task.panel0; p < task.panel1; ++p) {
    for_each_entry(w, task.block, p, [&](std::int64_t e, std::int64_t col) {
      for (std::int64_t v = 0; v < w.vector; ++v) {
        const std::int64_t at = e * w.vector + v;
        double sum = task.accumulate ? static_cast<double>(sums[at]) : 0.0;
        for (std::int64_t b = task.first; b < task.first + task.batch; ++b) {
          sum += read<T>(a.grad_output, b, p * w.vector + v) * read<T>(a.x, b, col);
        }
        if (task.last) {
          write(grad_values + at, sum);
        } else {
          sums[at] = static_cast<C>(sum);
        }
      }
    });
  }
}

void no_pack(const SddmmArgs&, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
             void*) noexcept {}
std::size_t no_bytes(const SpmmArgs&) noexcept { return 0; }
std::size_t no_bytes_sddmm(const SddmmArgs&) noexcept { return 0; }
std::int64_t whole_batch(const SddmmArgs& a) noexcept { return a.x.rows; }
std::size_t block_of_sums(const SpmmTArgs&) noexcept {
  return Panels::max_block_cols * sizeof(double);
}

template <class Args>
std::int64_t any_batch(const Args&) noexcept {
  return 64;
}

template <class T>
constexpr Kernel<SpmmArgs> spmm_kernel = {spmm<T>, no_bytes, any_batch<SpmmArgs>};
template <class T>
constexpr Kernel<SpmmTArgs> spmm_t_kernel = {spmm_t<T>, block_of_sums, any_batch<SpmmTArgs>};
template <class T>
constexpr SddmmKernel sddmm_kernel = {no_pack, sddmm<T>, no_bytes_sddmm, whole_batch};

#define GOSSAMER_ROW(kernel) {kernel, kernel, kernel, kernel}
#define GOSSAMER_VERB(kernel) \
  {GOSSAMER_ROW(kernel<float>), GOSSAMER_ROW(kernel<double>), GOSSAMER_ROW(kernel<bf16>)}

}  // namespace

extern "C" constexpr ProductsTable gossamer_products_reference = {
    "reference",
    GOSSAMER_VERB(spmm_kernel),
    GOSSAMER_VERB(spmm_t_kernel),
    GOSSAMER_VERB(sddmm_kernel),
};

}  // namespace gossamer
