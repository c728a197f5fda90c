#include "prox/path_norm.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/parallel.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t chunk_entries = 8192;  // neurons that hold about this many are one task
constexpr int newton_passes = 12;

struct Pair {
  double b, c;
};

// With a = |v|, b = |w| and x >= 0 the best y_i is (b_i - c_i x)_+, and what is left to minimise
// over x has the derivative
//   h(x) = x - a + sum_i c_i (b_i - c_i x)_+ ,
// piecewise linear and CONVEX, as terms only leave while x grows. So h has at most two roots, the
// larger is the only local minimum above 0, and Newton's method from the right, from x = a, falls
// onto it without ever crossing it. A slope 1 - sum c_i^2 <= 0 on the way, or a step to x <= 0,
// says that there is no such root. The minimum is the root or x = 0 (with y = w), whichever is
// lower: the root's objective minus that of 0 is (sum of b_i^2 over y_i = 0  -  (a - sum c b) x)/2.
class Root {
 public:
  Root(double a, Pair* pairs, std::int64_t count) noexcept : a_(a), x_(a), pairs_(pairs) {
    // Without a threshold, or at 0, an input costs nothing wherever x is.
    for (std::int64_t i = 0; i < count; ++i) {
      if (pairs[i].b > 0.0 && pairs[i].c > 0.0) pairs_[left_++] = pairs[i];
    }
  }

  // The minimising x.
  double find() noexcept {
    for (int pass = 0; pass < newton_passes; ++pass) {
      const std::int64_t before = left_;
      left_ = 0;
      for (std::int64_t i = 0; i < before; ++i) {
        const Pair pair = pairs_[i];
        if (pair.b > pair.c * x_) {
          activate(pair);
        } else {
          pairs_[left_++] = pair;
        }
      }
      if (left_ == before) return better_than_zero();
      if (!move()) return 0.0;
    }
    return sweep();
  }

 private:
  void activate(const Pair& pair) noexcept {
    products_ += pair.c * pair.b;
    squares_ += pair.c * pair.c;
  }

  // To the root of the line through the active set; false when there is none above 0.
  bool move() noexcept {
    const double slope = 1.0 - squares_, right = a_ - products_;
    if (!(slope > 0.0 && right > 0.0)) return false;
    x_ = std::min(x_, right / slope);
    return true;
  }

  // Newton's method may need as many passes as there are inputs: the rest in order of their
  // breakpoints b / c, from the right, each once.
  double sweep() noexcept {
    std::sort(pairs_, pairs_ + left_,
              [](const Pair& p, const Pair& q) { return p.b / p.c > q.b / q.c; });
    std::int64_t next = 0;
    while (next < left_ && pairs_[next].b > pairs_[next].c * x_) {
      activate(pairs_[next++]);
      if (!move()) return 0.0;
    }
    pairs_ += next;
    left_ -= next;
    return better_than_zero();
  }

  double better_than_zero() const noexcept {
    double lost = 0.0;
    for (std::int64_t i = 0; i < left_; ++i) lost += pairs_[i].b * pairs_[i].b;
    return (a_ - products_) * x_ > lost ? x_ : 0.0;
  }

  double a_, x_;
  Pair* pairs_;  // those whose y is 0 at x_
  std::int64_t left_ = 0;
  double products_ = 0.0, squares_ = 0.0;  // of those whose y is not
};

// `size` with the sign of `of`, and every zero as +0.
template <class T>
T signed_as(double size, T of) noexcept {
  return std::copysign(static_cast<T>(size), of) + T{0};
}

template <class T>
struct Rows {
  T* v;
  std::int64_t v_stride;
  T* w;
  const T* c;
  std::int64_t inputs, w_row, w_col, c_row, c_col;

  explicit Rows(const PathNorm& p) noexcept
      : v(static_cast<T*>(p.v)),
        v_stride(p.v_stride),
        w(static_cast<T*>(p.w.data)),
        c(static_cast<const T*>(p.c.data)),
        inputs(p.w.cols),
        w_row(p.w.row_stride),
        w_col(p.w.col_stride),
        c_row(p.c.row_stride),
        c_col(p.c.col_stride) {}

  void prox(std::int64_t k, Pair* scratch) const noexcept {
    T& value = v[k * v_stride];
    T* row = w + k * w_row;
    const T* thresholds = c + k * c_row;
    double seen = std::fabs(static_cast<double>(value));  // NaN if anything is
    for (std::int64_t i = 0; i < inputs; ++i) {
      scratch[i] = {std::fabs(static_cast<double>(row[i * w_col])),
                    static_cast<double>(thresholds[i * c_col])};
      seen += scratch[i].b + scratch[i].c;
    }
    if (std::isnan(seen)) {
      value = std::numeric_limits<T>::quiet_NaN();
      for (std::int64_t i = 0; i < inputs; ++i) row[i * w_col] = value;
      return;
    }
    const double x = Root(std::fabs(static_cast<double>(value)), scratch, inputs).find();
    value = signed_as(x, value);
    for (std::int64_t i = 0; i < inputs; ++i) {
      T& entry = row[i * w_col];
      const double threshold = static_cast<double>(thresholds[i * c_col]);
      const double size = std::fabs(static_cast<double>(entry));
      // An infinite threshold times 0 is no number, and takes nothing.
      const double taken = x > 0.0 && threshold > 0.0 ? threshold * x : 0.0;
      entry = signed_as(size > taken ? size - taken : 0.0, entry);
    }
  }
};

template <class T>
void run(const PathNorm& p) {
  const Rows<T> rows(p);
  const std::int64_t neurons = p.w.rows, inputs = std::max<std::int64_t>(p.w.cols, 1);
  const std::int64_t chunk = std::max<std::int64_t>(1, chunk_entries / inputs);
  const std::int64_t tasks = ceil_div(neurons, chunk);
  const int workers = tasks < 2 ? 1 : max_threads();
  std::vector<Pair> scratch(static_cast<std::size_t>(workers) * static_cast<std::size_t>(inputs));
  parallel_for(tasks, workers, [&](std::int64_t task, int worker) noexcept {
    const std::int64_t end = std::min(neurons, (task + 1) * chunk);
    for (std::int64_t k = task * chunk; k < end; ++k) {
      rows.prox(k, scratch.data() + static_cast<std::int64_t>(worker) * inputs);
    }
  });
}

template <class T>
std::int64_t first_negative(const Matrix& c) noexcept {
  const T* data = static_cast<const T*>(c.data);
  for (std::int64_t k = 0; k < c.rows; ++k) {
    for (std::int64_t i = 0; i < c.cols; ++i) {
      if (data[k * c.row_stride + i * c.col_stride] < T{0}) return k * c.cols + i;
    }
  }
  return -1;
}

}  // namespace

std::int64_t first_negative_threshold(const PathNorm& p) noexcept {
  return p.dtype == DType::f64 ? first_negative<double>(p.c) : first_negative<float>(p.c);
}

void path_norm_prox(const PathNorm& p) {
  if (p.dtype == DType::f64) {
    run<double>(p);
  } else {
    run<float>(p);
  }
}

}  // namespace gossamer
