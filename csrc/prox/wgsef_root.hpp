// The root eta of g(eta) = k, where g is the sum of ramps clip(slope eta - offset, 0, 1) with
// costs: piecewise linear, not decreasing.
//
// A sample of the groups says where the root probably is; one pass over all groups settles those
// without a breakpoint near it and proves or refutes the guess; the rest goes round again. What no
// guess settles by half is cut at eight breakpoints of another sample, which ties and heavy tails
// cannot fool, and then by true medians: linear in any case.
#pragma once

#include <vector>

#include "prox/wgsef.hpp"

namespace gossamer {

class RampRoot {
 public:
  // Throws ArgumentError when a norm, weight or offset is unfit, std::bad_alloc. Works in this
  // thread's Workspace.
  explicit RampRoot(const WgsefProblem& problem);

  double cost() const noexcept { return scan_.cost; }  // of all groups that are not zero
  std::int64_t live() const noexcept { return scan_.live; }

  // Needs 0 < k < cost().
  double solve(double k);

  // u(eta) or gains of all groups.
  void shares(double eta, bool gains, double* out);

  double passes() const noexcept { return touched_ / static_cast<double>(problem_.m); }

 private:
  struct One {  // one group, for what is done one by one
    double slope, offset, cost, enters, fills;
  };
  struct Interval {
    double left, right;
  };
  // Groups that are not settled: all (then `store` is -1), or those in a store.
  struct Live {
    std::int64_t n;
    int store;
  };

  template <class F>
  void each_block(Live live, F&& body);
  One group(Live live, std::int64_t i) const;
  std::vector<One> sample(Live live, std::int64_t size);
  std::vector<One> all(Live live);
  double fixed() const noexcept { return full_ - offset_; }

  Interval guess(Live live);
  Interval cut(Live live);
  bool settle(Live& live, Interval at);
  Interval narrow(std::vector<One> groups, double weight, double k, Interval at, double slope,
                  double fixed, double* eta);

  const WgsefProblem& problem_;
  const GroupPasses& kernels_;
  bool flat_;
  double k_ = 0.0;
  Interval at_{};
  double slope_ = 0.0, offset_ = 0.0, full_ = 0.0;  // of the settled groups
  RampScan scan_;
  double touched_ = 0.0;
  std::int64_t chunks_;
  double* memory_[2] = {};
};

}  // namespace gossamer
