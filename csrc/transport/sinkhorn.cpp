#include <algorithm>
#include <memory>

#include "transport/state.hpp"

namespace gossamer {
namespace {

// Sinkhorn's sweeps on a stored kernel, as long as it is safe. The potentials of the moment are
// absorbed in the kernel, so what is stored is a plan, and scales start from 1.
class StoredKernel {
 public:
  explicit StoredKernel(State& s)
      : s_(s),
        kernel_(LineAllocator<double>().allocate(static_cast<std::size_t>(s.n * s.m))),
        scale_(s.a.size(), 1.0),
        w_(s.b.size(), 1.0) {
    s.runner.plan(s.inv_reg, s.u.data(), s.v.data(), kernel_.get());
  }

  // False: a scale left the range in which the clamped entries of the kernel do not matter.
  bool sweep() {
    s_.runner.kernel_sweep({kernel_.get(), w_.data(), s_.a.data(), scale_.data(), s_.r.data()},
                           s_.c);
    s_.error = 0.0;
    for (std::size_t i = 0; i < s_.a.size(); ++i) s_.error += std::abs(s_.a[i] - s_.r[i]);
    for (std::size_t j = 0; j < s_.b.size(); ++j) w_[j] = s_.b[j] / s_.c[j];
    ++s_.outcome.sweeps;
    return in_range(scale_) && in_range(w_);
  }

  void write_back() {
    for (std::size_t i = 0; i < s_.a.size(); ++i) s_.u[i] += std::log(scale_[i]);
    for (std::size_t j = 0; j < s_.b.size(); ++j) s_.v[j] += std::log(w_[j]);
  }

 private:
  static bool in_range(const Vector& scales) noexcept {
    return std::all_of(scales.begin(), scales.end(),
                       [](double x) { return x > 1e-60 && x < 1e60; });
  }

  State& s_;
  // Not a Vector: zeroing it first would cost as much as a sweep.
  struct Free {
    void operator()(double* p) const noexcept { LineAllocator<double>().deallocate(p, 0); }
  };
  std::unique_ptr<double[], Free> kernel_;
  Vector scale_, w_;
};

constexpr std::int64_t stored_kernel_limit = std::int64_t{1} << 26;  // entries: 512 MiB

// How many more sweeps the present contraction promises.
class Forecast {
 public:
  void add(double error) { errors_[count_++ % window] = error; }
  bool ready() const noexcept { return count_ >= window; }
  double sweeps_left(double tol) const noexcept {
    const double last = errors_[(count_ - 1) % window];
    const double first = errors_[count_ % window];
    const double rate = std::log(last / first) / (window - 1);
    return last <= tol ? 0.0 : rate < 0.0 ? std::log(tol / last) / rate : 1e300;
  }

 private:
  static constexpr int window = 8;
  double errors_[window] = {};
  int count_ = 0;
};

}  // namespace

bool run_sinkhorn(State& s, const SolveOptions& options, bool may_give_up) {
  const bool plain = options.omega == 1.0 && s.kappa_a == 1.0 && s.kappa_b == 1.0;
  const bool stored = plain && s.n * s.m <= stored_kernel_limit;
  const double patience = stored ? 200.0 : 60.0;  // sweeps that cost about what Newton does
  Forecast forecast;
  const auto done = [&] {
    s.outcome.history.add(s.error);
    if (s.error < options.tol) return true;
    if (!std::isfinite(s.error) || s.outcome.sweeps >= options.max_iter) return true;
    forecast.add(s.error);
    return may_give_up && forecast.ready() && forecast.sweeps_left(options.tol) > patience;
  };
  // The error of a sweep is that of the potentials before it, so the first one tells nothing.
  s.sweep(options.omega);
  bool ended = s.outcome.sweeps >= options.max_iter;
  while (!ended && stored) {
    StoredKernel kernel(s);
    bool safe = true;
    while (safe && !ended) {
      safe = kernel.sweep();
      ended = done();
    }
    kernel.write_back();
  }
  while (!ended) {
    s.sweep(options.omega);
    ended = done();
  }
  if (!(s.error < options.tol)) return false;
  s.runner.sums({s.inv_reg, s.u.data(), s.v.data(), s.r.data(), nullptr}, s.c);
  s.error = s.residual();
  return s.error <= options.tol;
}

}  // namespace gossamer
