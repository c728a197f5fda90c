// Compares every kernel of the products with the reference table, without Python, so that it runs
// where only a compiler and an emulator of the processor are (`make cross`).
//
//   gossamer_check [TABLE ...]      default: all tables that this processor can run
//
// For each table, verb, dtype, V, pattern and batch. Three kinds of numbers: small integers, whose
// sums are exact in any order, so that results must be equal; the same with infinities and NaN;
// and fractions, which may differ by rounding. Prints the first difference and exits with 1.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <random>
#include <string>
#include <vector>

#include "core/isa.hpp"
#include "products/dispatch.hpp"
#include "products/drive.hpp"
#include "products/structure.hpp"
#include "simd/bits.hpp"

namespace gossamer {
namespace {

// ---- numbers -----------------------------------------------------------------------------------
enum class Numbers { integers, specials, fractions };
constexpr const char* numbers_name[] = {"integers", "integers, inf and nan", "fractions"};
constexpr const char* dtype_name[dtype_count] = {"float32", "float64", "bfloat16"};

// A matrix in memory of its own, with gaps between its lines that no kernel may write to.
class Buffer {
 public:
  Buffer(std::int64_t rows, std::int64_t cols, DType dtype, bool by_columns = false)
      : dtype_(dtype), stride_((by_columns ? rows : cols) + 3), by_columns_(by_columns) {
    const std::int64_t lines = by_columns ? cols : rows;
    memory_.assign(static_cast<std::size_t>(lines * stride_) * itemsize(dtype), std::byte{0x5a});
    matrix_ = {memory_.data(), rows, cols, by_columns ? 1 : stride_, by_columns ? stride_ : 1};
  }
  Buffer(const Buffer& other)
      : Buffer(other.rows(), other.cols(), other.dtype_, other.by_columns_) {
    memory_ = other.memory_;
    matrix_.data = memory_.data();
  }

  void fill(Numbers numbers, std::mt19937_64& random) {
    for (std::int64_t i = 0; i < count(); ++i) {
      const auto bits = random();
      double x = static_cast<double>(bits % 9) - 4;
      if (numbers == Numbers::fractions) x = static_cast<double>(bits >> 11) * 0x1p-52 - 1;
      if (numbers == Numbers::specials && bits % 101 == 0) x = bits % 202 == 0 ? NAN : INFINITY;
      set(i, x);
    }
  }
  Buffer magnitudes() const {
    Buffer out = *this;
    for (std::int64_t i = 0; i < count(); ++i) out.set(i, std::fabs(get(i)));
    return out;
  }

  // Elements in the order of memory, gaps included.
  std::int64_t count() const {
    return static_cast<std::int64_t>(memory_.size() / itemsize(dtype_));
  }
  double get(std::int64_t i) const {
    switch (dtype_) {
      case DType::f32: return at<float>(i);
      case DType::f64: return at<double>(i);
      default: return static_cast<double>(widen(at<bf16>(i)));
    }
  }
  bool same_bits(const Buffer& other, std::int64_t i) const {
    const std::size_t size = itemsize(dtype_), from = static_cast<std::size_t>(i) * size;
    return std::memcmp(memory_.data() + from, other.memory_.data() + from, size) == 0;
  }
  std::string place(std::int64_t i) const {
    const std::int64_t line = i / stride_, in_line = i % stride_;
    if (in_line >= stride_ - 3) return "the gap behind line " + std::to_string(line);
    return "element (" + std::to_string(by_columns_ ? in_line : line) + ", " +
           std::to_string(by_columns_ ? line : in_line) + ")";
  }

  const Matrix& matrix() const { return matrix_; }
  void* data() const { return matrix_.data; }
  std::int64_t rows() const { return matrix_.rows; }
  std::int64_t cols() const { return matrix_.cols; }
  DType dtype() const { return dtype_; }

 private:
  template <class T>
  T at(std::int64_t i) const {
    T x;
    std::memcpy(&x, memory_.data() + static_cast<std::size_t>(i) * sizeof(T), sizeof(T));
    return x;
  }
  template <class T>
  void put(std::int64_t i, T x) {
    std::memcpy(memory_.data() + static_cast<std::size_t>(i) * sizeof(T), &x, sizeof(T));
  }
  void set(std::int64_t i, double x) {
    switch (dtype_) {
      case DType::f32: return put(i, static_cast<float>(x));
      case DType::f64: return put(i, x);
      default: return put(i, round_bf16(static_cast<float>(x)));
    }
  }

  DType dtype_;
  std::int64_t stride_;
  bool by_columns_;
  std::vector<std::byte> memory_;
  Matrix matrix_;
};

// ---- patterns ----------------------------------------------------------------------------------
// A single entry; odd sizes; two blocks, the last one of few columns; full; few entries, empty rows
// and columns; nothing; groups that do and do not divide a block, an odd number of kept columns.
struct Pattern {
  const char* name;
  std::int64_t panels, cols, n, m;
  double density;  // where m = 0
};
constexpr Pattern patterns[] = {
    {"one entry", 1, 1, 0, 0, 1}, {"60%", 5, 37, 0, 0, 0.6},    {"50%", 9, 300, 0, 0, 0.5},
    {"10%", 11, 513, 0, 0, 0.1},  {"full", 2, 260, 0, 0, 1},    {"2%", 17, 520, 0, 0, 0.02},
    {"holes", 6, 290, 0, 0, 0.5}, {"nothing", 3, 300, 0, 0, 0}, {"2:4", 5, 260, 2, 4, 0},
    {"1:3", 3, 276, 1, 3, 0},     {"3:5", 4, 265, 3, 5, 0},     {"5:64", 3, 384, 5, 64, 0},
    {"8:8", 2, 272, 8, 8, 0},
};

Encoded make_structure(const Pattern& pattern, std::int64_t vector, std::mt19937_64& random) {
  const bool holes = std::strcmp(pattern.name, "holes") == 0;
  const std::int64_t rows = pattern.panels * vector;
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(rows * pattern.cols));
  for (std::int64_t p = 0; p < pattern.panels; ++p) {
    std::int64_t wanted = 0;  // of the rest of this group of m
    for (std::int64_t c = 0; c < pattern.cols; ++c) {
      const double chance = static_cast<double>(random() >> 11) * 0x1p-53;
      bool kept = chance < pattern.density;
      if (pattern.m > 0) {
        if (c % pattern.m == 0) wanted = pattern.n;
        kept =
            chance * static_cast<double>(pattern.m - c % pattern.m) < static_cast<double>(wanted);
        wanted -= kept;
      }
      if (holes && (p == 0 || p == pattern.panels - 1 || c % 3 == 0)) kept = false;
      for (std::int64_t v = 0; v < vector; ++v) {
        mask[static_cast<std::size_t>((p * vector + v) * pattern.cols + c)] = kept;
      }
    }
  }
  const std::int64_t panel = std::min<std::int64_t>(vector, 8);
  return encode(mask.data(), rows, pattern.cols, panel, pattern.n, pattern.m);
}

// ---- products ----------------------------------------------------------------------------------
enum class Verb { spmm, spmm_t, sddmm };
constexpr const char* verb_name[] = {"spmm", "spmm_t", "sddmm"};

struct Operands {
  Buffer x, grad_output, values, bias;

  Operands magnitudes() const {
    return {x.magnitudes(), grad_output.magnitudes(), values.magnitudes(), bias.magnitudes()};
  }
};

// By the table in use.
Buffer product(Verb verb, const Panels& w, const Operands& o, bool by_columns) {
  const DType dtype = o.x.dtype();
  const std::int64_t batch = o.x.rows();
  if (verb == Verb::spmm) {
    Buffer y(batch, w.rows, dtype, by_columns);
    const void* bias = batch % 2 != 0 ? o.bias.data() : nullptr;
    run_spmm({o.x.matrix(), o.values.data(), w, bias, y.matrix()}, dtype, {});
    return y;
  }
  if (verb == Verb::spmm_t) {
    Buffer grad_input(batch, w.cols, dtype, by_columns);
    run_spmm_t({o.grad_output.matrix(), o.values.data(), w, grad_input.matrix()}, dtype, {});
    return grad_input;
  }
  Buffer grad_values(1, w.nnz(), dtype);
  run_sddmm({o.grad_output.matrix(), o.x.matrix(), w, grad_values.data()}, dtype, {});
  return grad_values;
}

bool has_kernel(const std::string& table, Verb verb, Slot slot) {
  const char* name = nullptr;
  switch (verb) {
    case Verb::spmm: find_spmm(slot, &name); break;
    case Verb::spmm_t: find_spmm_t(slot, &name); break;
    case Verb::sddmm: find_sddmm(slot, &name); break;
  }
  return table == name;
}

// ---- comparison --------------------------------------------------------------------------------
struct Expected {
  Buffer result;
  Buffer magnitude;  // the product of the magnitudes; of fractions only
  double rounding;   // of a sum, relative to its magnitude
};

bool agree(const std::string& table, Numbers numbers, const Buffer& got, const Expected& wanted,
           std::int64_t i) {
  if (got.same_bits(wanted.result, i)) return true;
  const double x = got.get(i), y = wanted.result.get(i);
  if (std::isnan(x) && std::isnan(y)) {
    // bf16 has one NaN, but for the instructions that round pairs of sums.
    const bool pairs = table.size() > 4 && table.substr(table.size() - 4) == "bf16";
    return got.dtype() != DType::bf16 || pairs;
  }
  if (x == y) return true;
  const double last_place = got.dtype() == DType::bf16 ? 0x1p-7 * std::fabs(y) : 0;
  return numbers == Numbers::fractions &&
         std::fabs(x - y) <= wanted.rounding * wanted.magnitude.get(i) + last_place;
}

struct Tables {
  std::vector<std::string> names;
  std::vector<std::int64_t> products;  // that were compared
};

// One pattern, V, dtype, batch and kind of numbers: all verbs by all tables.
bool check_case(const Pattern& pattern, std::int64_t vector, DType dtype, std::int64_t batch,
                Numbers numbers, Tables& tables) {
  std::mt19937_64 random(static_cast<std::uint64_t>(batch));
  const Encoded encoded = make_structure(pattern, vector, random);
  const int index = vector > 8 ? run_index : vector_index(vector);
  Panels w = encoded.layout;
  w.indices = encoded.indices.data();
  w.indptr = encoded.indptr.empty() ? nullptr : encoded.indptr.data();

  const bool by_columns = batch == 33;
  Operands operands{Buffer(batch, w.cols, dtype, by_columns),
                    Buffer(batch, w.rows, dtype, by_columns), Buffer(1, w.nnz(), dtype),
                    Buffer(1, w.rows, dtype)};
  operands.x.fill(numbers, random);
  operands.grad_output.fill(numbers, random);
  operands.values.fill(numbers == Numbers::specials ? Numbers::integers : numbers, random);
  operands.bias.fill(numbers, random);

  for (const Verb verb : {Verb::spmm, Verb::spmm_t, Verb::sddmm}) {
    use_isa("reference");
    const Buffer result = product(verb, w, operands, by_columns);
    const std::int64_t terms = verb == Verb::spmm ? w.cols : verb == Verb::spmm_t ? w.rows : batch;
    // bfdot rounds to odd, by up to a whole unit.
    const double unit = dtype == DType::f64 ? 0x1p-53 : 0x1p-23;
    const Expected wanted{result,
                          numbers == Numbers::fractions
                              ? product(verb, w, operands.magnitudes(), by_columns)
                              : result,
                          unit * static_cast<double>(terms + 2)};
    for (std::size_t t = 0; t < tables.names.size(); ++t) {
      const std::string& table = tables.names[t];
      use_isa(table);
      if (!has_kernel(table, verb, {dtype, index})) continue;
      const Buffer got = product(verb, w, operands, by_columns);
      ++tables.products[t];
      for (std::int64_t i = 0; i < got.count(); ++i) {
        if (agree(table, numbers, got, wanted, i)) continue;
        std::printf(
            "%s %s %s, V = %d, %s, [%d, %d], batch %d, %s%s:\n"
            "%s is %.9g; the reference has %.9g%s\n",
            table.c_str(), verb_name[static_cast<int>(verb)], dtype_name[static_cast<int>(dtype)],
            static_cast<int>(vector), pattern.name, static_cast<int>(w.rows),
            static_cast<int>(w.cols), static_cast<int>(batch),
            numbers_name[static_cast<int>(numbers)], by_columns ? ", by columns" : "",
            got.place(i).c_str(), got.get(i), wanted.result.get(i),
            std::isnan(got.get(i)) && std::isnan(wanted.result.get(i)) ? " with other bits" : "");
        return false;
      }
    }
  }
  return true;
}

bool check_all(Tables& tables) {
  for (const Pattern& pattern : patterns) {
    for (const std::int64_t vector : {1, 4, 8, 16, 32, 128}) {
      for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
        for (const std::int64_t batch : {1, 3, 17, 33, 70}) {
          // Above 8 rows there are kernels of bf16, of more than 8 batch rows.
          if (vector > 8 && (dtype != DType::bf16 || batch <= 8)) continue;
          for (const Numbers numbers : {Numbers::integers, Numbers::specials, Numbers::fractions}) {
            if (!check_case(pattern, vector, dtype, batch, numbers, tables)) return false;
          }
        }
      }
    }
  }
  return true;
}

bool check_tables(std::vector<std::string> names) {
  if (names.empty()) {
    names = available_isas();
    names.pop_back();  // the reference
  }
  for (const std::string& name : names) use_isa(name);  // throws, with the names that there are
  Tables tables{names, std::vector<std::int64_t>(names.size())};
  if (!check_all(tables)) return false;
  for (std::size_t t = 0; t < names.size(); ++t) {
    std::printf("%-10s %6lld products agree with the reference\n", names[t].c_str(),
                static_cast<long long>(tables.products[t]));
    if (tables.products[t] == 0) return false;
  }
  return true;
}

}  // namespace
}  // namespace gossamer

int main(int argc, char** argv) {
  try {
    return gossamer::check_tables({argv + 1, argv + argc}) ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
