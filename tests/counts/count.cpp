// Runs each verb once per (pattern, dtype) on fixed sizes and data, for count.py to count the
// instructions of `run_*` under callgrind. One call of `finish_case` ends each case; the names of
// the cases are printed in that order, after a line that names the compiler.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/isa.hpp"
#include "products/drive.hpp"
#include "products/structure.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t rows = 128, cols = 512, batch = 48;

struct Random {
  std::uint64_t state = 88172645463325252ULL;
  double next() {  // xorshift64, in [0, 1)
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<double>(state >> 11) * 0x1.0p-53;
  }
};

// Memory at an address that does not depend on the machine's allocator modulo 64.
class Buffer {
 public:
  Buffer(std::int64_t count, DType dtype, Random* random = nullptr)
      : data_(std::aligned_alloc(
            64, static_cast<std::size_t>(round_up(count * 8, 64)))) {  // NOLINT: freed at exit
    for (std::int64_t i = 0; i < count; ++i) {
      const double value = random == nullptr ? 0.0 : random->next() - 0.5;
      if (dtype == DType::f64) static_cast<double*>(data_)[i] = value;
      if (dtype == DType::f32) static_cast<float*>(data_)[i] = static_cast<float>(value);
      if (dtype == DType::bf16) {
        const float as_float = static_cast<float>(value);
        std::uint32_t word;
        __builtin_memcpy(&word, &as_float, 4);
        static_cast<std::uint16_t*>(data_)[i] = static_cast<std::uint16_t>(word >> 16);
      }
    }
  }
  void* data() const { return data_; }
  Matrix matrix(std::int64_t width) const { return {data_, batch, width, width, 1}; }

 private:
  void* data_;
};

struct Pattern {
  const char* name;
  std::int64_t vector, n, m;
  double density;      // of the units that an unstructured pattern keeps
  std::int64_t block;  // height and width of those units
};

constexpr Pattern patterns[] = {
    {"2:4", 1, 2, 4, 0, 0},   {"2:4:v4", 4, 2, 4, 0, 0},   {"1:8:v4", 4, 1, 8, 0, 0},
    {"90%", 1, 0, 0, 0.1, 1}, {"90%:v4", 4, 0, 0, 0.1, 1}, {"block 16x16 75%", 8, 0, 0, 0.25, 16},
};

std::vector<std::uint8_t> mask_of(const Pattern& pattern, Random& random) {
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(rows * cols), 0);
  const std::int64_t height = pattern.block > 1 ? pattern.block : pattern.vector;
  const std::int64_t width = pattern.m > 0 ? pattern.m : pattern.block;
  for (std::int64_t row = 0; row < rows; row += height) {
    for (std::int64_t col = 0; col < cols; col += width) {
      const std::int64_t first =
          pattern.m > 0 ? static_cast<std::int64_t>(random.next() * static_cast<double>(width)) : 0;
      const bool whole = pattern.m == 0 && random.next() < pattern.density;
      for (std::int64_t i = 0; i < width; ++i) {
        const bool kept = pattern.m > 0 ? (i + width - first) % width < pattern.n : whole;
        for (std::int64_t r = row; r < row + height; ++r) {
          mask[static_cast<std::size_t>(r * cols + col + i)] = kept;
        }
      }
    }
  }
  return mask;
}

Panels view(const Encoded& encoded) {
  Panels panels = encoded.layout;
  panels.indices = encoded.indices.data();
  panels.indptr = encoded.indptr.empty() ? nullptr : encoded.indptr.data();
  return panels;
}

}  // namespace
}  // namespace gossamer

#if defined(__clang__)
#define KEEP_AS_IT_IS __attribute__((noinline))
#else
#define KEEP_AS_IT_IS __attribute__((noipa))
#endif

// callgrind writes its sums at each call of this function, so it must stay a function.
extern "C" KEEP_AS_IT_IS void finish_case(const char* verb, const char* pattern,
                                          const char* dtype) {
  std::printf("%s | %s | %s\n", verb, pattern, dtype);
}

int main() {
  using namespace gossamer;
#if defined(__clang__)
  std::printf("clang " __clang_version__ "\n");
#else
  std::printf("gcc " __VERSION__ "\n");
#endif
  use_isa("avx2");
  const DType dtypes[] = {DType::f32, DType::bf16};
  const char* const names[] = {"float32", "bfloat16"};
  for (const Pattern& pattern : patterns) {
    for (int i = 0; i < 2; ++i) {
      Random random;
      const DType dtype = dtypes[i];
      const Encoded encoded =
          encode(mask_of(pattern, random).data(), rows, cols, pattern.vector, pattern.n, pattern.m);
      const Panels weight = view(encoded);
      Encoded transposed = transposed_pointers(weight);
      transposed.indices.resize(static_cast<std::size_t>(weight.nnz()));
      std::vector<std::int32_t> perm(transposed.indices.size());
      transpose_into(weight, transposed, transposed.indices.data(), perm.data());
      const Buffer values(weight.nnz(), dtype, &random), bias(rows, dtype, &random);
      const Buffer x(batch * cols, dtype, &random), grad_output(batch * rows, dtype, &random);
      const Buffer y(batch * rows, dtype), grad_input(batch * cols, dtype);
      const Buffer sums(weight.nnz(), dtype);

      const SpmmArgs spmm{x.matrix(cols), values.data(), weight, bias.data(), y.matrix(rows)};
      run_spmm(spmm, dtype, {});
      finish_case("spmm", pattern.name, names[i]);

      const SpmmTArgs spmm_t{grad_output.matrix(rows), values.data(), weight,
                             grad_input.matrix(cols)};
      run_spmm_t(spmm_t, dtype, {});
      finish_case("spmm_t", pattern.name, names[i]);

      run_spmm_t_packed(spmm_t, view(transposed), perm.data(), dtype, {});
      finish_case("spmm_t packed", pattern.name, names[i]);

      run_sddmm({grad_output.matrix(rows), x.matrix(cols), weight, sums.data()}, dtype, {});
      finish_case("sddmm", pattern.name, names[i]);
    }
  }
}
