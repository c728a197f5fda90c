// Compares the kernels of a GPU with products in double: emulated (g++), or on a device (nvcc, by
// way of check.cu). Needs neither Python nor torch.
//
//   check [--small]    every case under 8 schedules (emulated) or 2 runs of equal bits (a device)
//
// The last line says how many failed; the exit status is 0 if none did.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>

#include "memory.hpp"
#include "products/cuda/serve.cuh"

using namespace gossamer;
using check::Array;

namespace {

std::uint16_t rounded(double d) {
  const auto x = static_cast<float>(d);
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
double number(bf16 x) {
  const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return static_cast<double>(y);
}

// `run` panels of `vector` rows have equal lists: n of m, or n percent where m is 0.
struct Case {
  int tokens, rows, cols, vector, run, n, m;
};

struct Weight {
  Panels panels;
  std::vector<std::uint8_t> indices;
  std::vector<std::int32_t> indptr{0};
  std::vector<std::int64_t> row0, col;  // of each entry
};

Weight make_weight(const Case& c, std::mt19937& random) {
  Weight w;
  w.panels.rows = c.rows;
  w.panels.cols = c.cols;
  w.panels.vector = c.vector;
  w.panels.run = c.run;
  if (c.m != 0) {
    w.panels.n = c.n;
    w.panels.m = c.m;
    w.panels.block_cols = Panels::widest_block(c.m);
  }
  for (std::int64_t block = 0; block < w.panels.blocks(); ++block) {
    const int width = static_cast<int>(w.panels.block_width(block));
    std::vector<std::uint8_t> list;
    for (std::int64_t panel = 0; panel < w.panels.panels(); ++panel) {
      if (panel % c.run == 0) {
        list.clear();
        for (int first = 0; first < width; first += c.m == 0 ? width : c.m) {
          std::vector<int> order(static_cast<std::size_t>(c.m == 0 ? width : c.m));
          for (std::size_t i = 0; i < order.size(); ++i) order[i] = first + static_cast<int>(i);
          std::shuffle(order.begin(), order.end(), random);
          // Without a fixed count some lists are empty.
          const int keep = c.m != 0 ? c.n : random() % 5 == 0 ? 0 : width * c.n / 100;
          order.resize(static_cast<std::size_t>(keep));
          std::sort(order.begin(), order.end());
          for (const int id : order) list.push_back(static_cast<std::uint8_t>(id));
        }
      }
      for (const std::uint8_t id : list) {
        w.indices.push_back(id);
        w.row0.push_back(panel * c.vector);
        w.col.push_back(block * w.panels.block_cols + id);
      }
      w.indptr.push_back(static_cast<std::int32_t>(w.indices.size()));
    }
  }
  w.panels.entry_count = static_cast<std::int64_t>(w.indices.size());
  return w;
}

std::vector<bf16> normal(std::size_t count, std::mt19937& random) {
  std::normal_distribution<double> draw;
  std::vector<bf16> out(count);
  for (bf16& x : out) x.bits = rounded(draw(random));
  return out;
}

void require_bits(const std::vector<bf16>& a, const std::vector<bf16>& b, const char* what) {
  const auto same = [](bf16 x, bf16 y) { return x.bits == y.bits; };
  if (!std::equal(a.begin(), a.end(), b.begin(), b.end(), same)) throw std::logic_error(what);
}

std::vector<bf16> check_spmm(const Case& c, bool tensor_cores_90) {
  std::mt19937 random(7);
  Weight w = make_weight(c, random);
  const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  std::vector<bf16> values = normal(w.indices.size() * 8, random);
  // So is a value: the first of a list, which stands behind the end of the one before.
  for (std::size_t e = 1; e < w.row0.size(); ++e) {
    if (w.row0[e] == w.row0[e - 1] || w.row0[e] % (8 * c.run) != 0) continue;
    values[e * 8].bits = 0x7fc0;
    break;
  }
  const std::vector<bf16> bias = normal(size(c.rows), random);
  std::vector<bf16> x = normal(size(c.tokens) * size(c.cols), random);
  // A column of x is NaN, which only the rows that keep it may see: the first one that some lists
  // lack, which is often the first id behind such a list.
  for (std::int64_t col = 0; col < c.cols; ++col) {
    const auto keep = std::count(w.col.begin(), w.col.end(), col);
    if (keep == 0 || keep == w.panels.panels()) continue;
    for (int t = 0; t < c.tokens; ++t) x[size(t) * size(c.cols) + size(col)].bits = 0x7fc0;
    break;
  }
  const Matrix xs{nullptr, c.tokens, c.cols, c.cols, 1};
  Array ids(w.indices);
  Array pointers(w.indptr);
  Array v(values), b(bias), in(x);
  Array out(std::vector<bf16>(size(c.tokens) * size(c.rows), bf16{0xabcd}));
  Array scratch(std::vector<bf16>(gpu::spmm_scratch(xs) / 2, bf16{0x7fc0}));
  SpmmArgs args{xs, v.data(), w.panels, b.data(), {out.data(), c.tokens, c.rows, c.rows, 1}};
  args.x.data = in.data();
  args.weight.indices = ids.data();
  args.weight.indptr = c.m == 0 ? pointers.data() : nullptr;
  gpu::run_spmm(args, DType::bf16, scratch.data(), tensor_cores_90, {});
  const std::vector<bf16> y = out.read();
  scratch.read();

  std::vector<double> exact(y.size()), size_of(y.size());
  for (int t = 0; t < c.tokens; ++t) {
    double* row = exact.data() + size(t) * size(c.rows);
    double* big = size_of.data() + size(t) * size(c.rows);
    for (int r = 0; r < c.rows; ++r) {
      row[r] = number(bias[size(r)]);
      big[r] = std::fabs(row[r]);
    }
    for (std::size_t e = 0; e < w.indices.size(); ++e) {
      const double at = number(x[size(t) * size(c.cols) + size(w.col[e])]);
      for (int i = 0; i < 8; ++i) {
        const double term = at * number(values[e * 8 + size(i)]);
        row[w.row0[e] + i] += term;
        big[w.row0[e] + i] += std::fabs(term);
      }
    }
  }
  if (std::all_of(exact.begin(), exact.end(), [](double d) { return std::isnan(d); })) {
    throw std::logic_error("an oracle of nothing but NaN proves nothing");
  }
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double got = number(y[i]);
    const bool right = std::isnan(exact[i]) ? std::isnan(got)
                                            : std::fabs(got - exact[i]) <=
                                                  std::fabs(exact[i]) / 256 + size_of[i] * 1e-6;
    if (!right || y[i].bits == 0xabcd) {
      throw std::logic_error("element " + std::to_string(i) + " is " + std::to_string(got) +
                             ", exact is " + std::to_string(exact[i]));
    }
  }
  return y;
}

std::vector<bf16> check_copies(const Case& c) {
  std::mt19937 random(11);
  Weight w = make_weight(c, random);
  const auto rows = static_cast<std::size_t>(c.rows), cols = static_cast<std::size_t>(c.cols);
  const auto vector = static_cast<std::size_t>(c.vector);
  const std::vector<bf16> values = normal(w.indices.size() * vector, random);
  const std::size_t ld = cols + 3;  // rows that do not follow one another
  std::vector<bf16> expected(rows * ld, bf16{0xabcd});
  for (std::size_t r = 0; r < rows; ++r) {
    std::fill_n(expected.begin() + static_cast<std::ptrdiff_t>(r * ld), cols, bf16{0});
  }
  for (std::size_t e = 0; e < w.indices.size(); ++e) {
    for (std::size_t i = 0; i < vector; ++i) {
      expected[(static_cast<std::size_t>(w.row0[e]) + i) * ld +
               static_cast<std::size_t>(w.col[e])] = values[e * vector + i];
    }
  }
  Array ids(w.indices);
  Array pointers(w.indptr);
  Array v(values), dense(std::vector<bf16>(rows * ld, bf16{0xabcd}));
  Array back(std::vector<bf16>(values.size(), bf16{0xabcd}));
  Panels panels = w.panels;
  panels.indices = ids.data();
  panels.indptr = c.m == 0 ? pointers.data() : nullptr;
  const Matrix matrix{dense.data(), c.rows, c.cols, static_cast<std::int64_t>(ld), 1};
  gpu::run_scatter({panels, v.data(), matrix}, DType::bf16, {});
  require_bits(dense.read(), expected, "scatter: wrong bits");
  gpu::run_gather({panels, back.data(), matrix}, DType::bf16, {});
  require_bits(back.read(), values, "gather: wrong bits");
  return values;
}

// Whatever a structure holds, nothing outside its arrays is touched; the result is not looked at.
void check_damaged(Case c, unsigned seed) {
  std::mt19937 random(seed);
  Weight w = make_weight(c, random);
  for (std::uint8_t& id : w.indices) id = static_cast<std::uint8_t>(random());
  // Anything at all, or close to what may be.
  const auto range = seed % 2 == 0 ? 0xffffffffu : static_cast<unsigned>(w.indices.size() + 9);
  for (std::int32_t& p : w.indptr) p = static_cast<std::int32_t>(random() % range);
  Array ids(w.indices);
  Array pointers(w.indptr);
  const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  Array v(normal(w.indices.size() * size(c.vector), random));
  Array in(normal(size(c.tokens) * size(c.cols), random));
  Array out(normal(size(c.tokens) * size(c.rows), random));
  Array dense(normal(size(c.rows) * size(c.cols), random));
  Panels panels = w.panels;
  panels.indices = ids.data();
  panels.indptr = c.m == 0 ? pointers.data() : nullptr;
  const Matrix matrix{dense.data(), c.rows, c.cols, c.cols, 1};
  gpu::run_scatter({panels, v.data(), matrix}, DType::bf16, {});
  gpu::run_gather({panels, v.data(), matrix}, DType::bf16, {});
  if (c.vector == 8) {
    const Matrix x{in.data(), c.tokens, c.cols, c.cols, 1};
    Array scratch(std::vector<bf16>(gpu::spmm_scratch(x) / 2));
    const Matrix y{out.data(), c.tokens, c.rows, c.rows, 1};
    gpu::run_spmm({x, v.data(), panels, nullptr, y}, DType::bf16, scratch.data(), true, {});
    scratch.read();
  }
  out.read();
  dense.read();
  v.read();
}

int failures = 0, runs = 0;

template <class F>
void attempt(const std::string& name, F&& run) {
  ++runs;
  try {
    run();
  } catch (const std::exception& e) {
    if (++failures <= 5) std::printf("%s: %s\n", name.c_str(), e.what());
  }
}

template <class F>
void repeat(const std::string& name, F&& run) {
#if defined(__CUDACC__)
  attempt(name, [&] {
    const auto first = run();
    require_bits(run(), first, "two runs differ");
  });
#else
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    gpu::next_seed = seed * 1001 + seed % 2;  // odd ones by priorities
    attempt(name + ", schedule " + std::to_string(seed), run);
  }
#endif
}

std::string text(const Case& c) {
  return std::to_string(c.rows) + "x" + std::to_string(c.cols) + ", " + std::to_string(c.n) + ":" +
         std::to_string(c.m) + ":v" + std::to_string(c.vector * c.run) + ", " +
         std::to_string(c.tokens) + " tokens";
}

}  // namespace

int main(int argc, char** argv) {
  const bool small = argc > 1 && std::string(argv[1]) == "--small";
  // More blocks of columns than stages, tails of tokens, rows and blocks, lists that end inside 16.
  const Case products[] = {
      {33, 24, 300, 8, 1, 30, 0},  {72, 40, 520, 8, 1, 2, 8},   {64, 64, 256, 8, 2, 1, 4},
      {72, 144, 1000, 8, 2, 2, 8}, {40, 80, 328, 8, 2, 2, 8},   {128, 64, 90, 8, 2, 3, 5},
      {70, 96, 512, 8, 4, 2, 8},   {1, 32, 800, 8, 4, 25, 0},   {136, 128, 512, 8, 8, 2, 8},
      {40, 192, 1352, 8, 8, 1, 8}, {64, 256, 800, 8, 16, 3, 16}};
  const Case copies[] = {{0, 24, 300, 1, 1, 30, 0}, {0, 24, 520, 4, 1, 2, 8},
                         {0, 40, 330, 8, 1, 3, 5},  {0, 12, 257, 4, 1, 60, 0},
                         {0, 8, 12, 1, 1, 100, 0},  {0, 16, 7, 8, 1, 0, 0}};
  for (const Case& c : products) {
    if (small && c.cols > 600) continue;
    repeat("spmm " + text(c), [&] { return check_spmm(c, true); });
    if (c.run >= 8) repeat("spmm " + text(c) + ", warps", [&] { return check_spmm(c, false); });
  }
  for (const Case& c : copies) repeat("copies " + text(c), [&] { return check_copies(c); });
  for (unsigned seed = 0; seed < 6; ++seed) {
    for (const Case& c :
         {products[0], products[1], products[4], products[7], products[9], copies[1], copies[3]}) {
      Case other = c;
      other.tokens = std::min(std::max(c.tokens, 1), 20);
      attempt("damaged " + text(other), [&] { check_damaged(other, seed); });
    }
  }
  std::printf("%d of %d runs fail\n", failures, runs);
  return failures != 0;
}
