// Sparsity-constrained transport: the semi-dual in the row potentials f, and its solver.
//
//   D(f) = <f, a> - sum_j max { <f - c_j, t> - gamma/2 |t|^2 : t >= 0, sum t = b_j, |t|_0 <= k }
//
// Liu, Puigcerver, Blondel 2023, "Sparsity-constrained optimal transport". The maximisers t_j are
// the columns of the plan: always of mass b_j and at most k entries, whatever f is. Rows are met
// where the gradient a - sum_j t_j vanishes; when k binds, that need not happen anywhere.
#pragma once

#include <cstdint>
#include <vector>

#include "core/types.hpp"

namespace gossamer {

// Entry (i, j) of the cost is at cost[j * rows + i]: each column is one run of memory.
struct SemiDualProblem {
  const void* cost = nullptr;
  DType dtype = DType::f64;  // f64 or f32; the arithmetic is double
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t k = 0;  // in [1, rows]
  const double* a = nullptr;
  const double* b = nullptr;
  double gamma = 1.0;
};

// Column j holds count[j] entries from j * k on, rows ascending, masses positive.
struct ColumnPlan {
  std::vector<std::int64_t> count;
  std::vector<std::int32_t> row;
  std::vector<double> mass;
};

// D and what comes with it at one f.
struct SemiDualPoint {
  std::vector<double> f;
  std::vector<double> gradient;  // a - P1
  double value = 0.0;
  double magnitude = 0.0;  // sum |f| a + sum |g| b: value is rounded to a part of it
  double error = 0.0;      // |a - P1|_1
};

class SemiDual {
 public:
  // Throws std::bad_alloc.
  explicit SemiDual(const SemiDualProblem& problem);

  // Fills value, gradient and error for point.f; plan() and g() then belong to it. Bit-equal for
  // any number of threads. A column's ties at the k-th place go to the lower rows.
  void evaluate(SemiDualPoint& point);

  const SemiDualProblem& problem() const noexcept { return problem_; }
  const ColumnPlan& plan() const noexcept { return plan_; }
  const std::vector<double>& g() const noexcept { return g_; }

 private:
  template <class T>
  void columns(const double* f);

  SemiDualProblem problem_;
  ColumnPlan plan_;
  std::vector<double> g_;
};

enum class Ascent { lbfgs, newton };
enum class Outcome { converged, max_iter, stalled };

struct SemiDualReport {
  Outcome outcome = Outcome::max_iter;
  std::int64_t iterations = 0;
  std::int64_t newton = 0;       // how many of them were Newton steps
  std::int64_t evaluations = 0;  // of D
};

// Climbs from point.f until point.error <= tol; dual's plan and g belong to the point it ends at.
SemiDualReport maximise(SemiDual& dual, SemiDualPoint& point, Ascent ascent, double tol,
                        std::int64_t max_iter);

}  // namespace gossamer
