// Proximal operators entry by entry, in place: z = argmin 1/2 (z - x)^2 + s g(z).
//
// Each operator is a struct of constants, made from the penalty's parameters and the step s. With
// one step for all they are computed once in double; with a step for each entry (an optimizer's
// metric) in T, inside the vectorised loop. Comparisons are written so that NaN stays NaN, and a
// zero is always +0.0. Formulas and their sources: python/gossamer/prox.
#pragma once

#include <cmath>
#include <cstddef>
#include <type_traits>

#include "prox/table.hpp"
#include "simd/math.hpp"

namespace gossamer {
namespace {

template <class T>
GOSSAMER_INLINE T root_of(T x) noexcept {
  if constexpr (std::is_same_v<T, float>) {
    return __builtin_sqrtf(x);
  } else {
    return __builtin_sqrt(x);
  }
}
template <class T>
GOSSAMER_INLINE T size_of(T x) noexcept {
  if constexpr (std::is_same_v<T, float>) {
    return __builtin_fabsf(x);
  } else {
    return __builtin_fabs(x);
  }
}
template <class T>
GOSSAMER_INLINE T with_sign(T size, T of) noexcept {
  if constexpr (std::is_same_v<T, float>) {
    return __builtin_copysignf(size, of);
  } else {
    return __builtin_copysign(size, of);
  }
}

// NaN stays.
template <class T>
GOSSAMER_INLINE T raised(T x, T floor) noexcept {
  return x < floor ? floor : x;
}

// 0 up to `zero`, then two straight lines up to their ends, then x itself:
//
//   z        line2 /            l1, elastic net: line1 alone, without end
//   |       ______/             l0: neither; a jump from 0 to x
//   |  line1/                   MCP: line1 (steeper than 1); beyond the convex range neither
//   |______/                    SCAD: line1 (soft), line2;  capped l1: line1, a jump to x
//     zero  end1 end2   |x|     Huber: line1 from 0 on, line2 without end
template <class T>
struct Pieces {
  T zero, end1, slope1, offset1, end2, slope2, offset2;

  GOSSAMER_INLINE T operator()(T x) const noexcept {
    const T a = size_of(x);
    T z = a;
    z = a <= end2 ? slope2 * (a - offset2) : z;
    z = a <= end1 ? slope1 * (a - offset1) : z;
    return a <= zero ? T(0) : with_sign(z, x);
  }
};

// Smallest normal numbers: log2_of needs no less.
template <class T>
constexpr T tiny_of = T(std::is_same_v<T, float> ? 1.2e-38 : 2.3e-308);

constexpr double no_end = __builtin_huge_val();

template <Penalty which, class T, class S>
GOSSAMER_INLINE Pieces<T> pieces(const double* params, S s) noexcept {
  const S lam = S(params[0]), b = S(params[1]);
  const S t = s * lam;
  const T none = T(-1);  // no |x| is below it: a line that is not there
  if constexpr (which == Penalty::l1) {
    return {T(t), T(no_end), T(1), T(t), none, T(0), T(0)};
  } else if constexpr (which == Penalty::elastic_net) {
    const S cut = t * b;
    return {T(cut), T(no_end), T(S(1) / (S(1) + t * (S(1) - b))), T(cut), none, T(0), T(0)};
  } else if constexpr (which == Penalty::l0) {
    return {T(root_of(S(2) * t)), none, T(0), T(0), none, T(0), T(0)};
  } else if constexpr (which == Penalty::mcp) {
    const bool convex = s < b;
    const S slope = S(1) / (convex ? S(1) - s / b : S(1));
    return {T(convex ? t : lam * root_of(s * b)),
            convex ? T(b * lam) : none,
            T(slope),
            T(t),
            none,
            T(0),
            T(0)};
  } else if constexpr (which == Penalty::scad) {
    // Beyond s = gamma - 1 the middle line would lie on a hill: a jump at the point where the soft
    // threshold and x itself cost the same.
    const bool convex = s < b - S(1);
    const S equal = s <= b + S(1) ? lam * (b + S(1) + s) / S(2) : lam * root_of(s * (b + S(1)));
    const S slope = (b - S(1)) / (convex ? b - S(1) - s : S(1));
    return {T(convex || t < equal ? t : equal),
            T(convex ? (S(1) + s) * lam : equal),
            T(1),
            T(t),
            convex ? T(b * lam) : none,
            T(slope),
            T(t * (b / (b - S(1))))};
  } else if constexpr (which == Penalty::huber) {
    const S grown = S(1) + t;
    return {T(0), T(b * grown), T(S(1) / grown), T(0), T(no_end), T(1), T(t * b)};
  } else {
    static_assert(which == Penalty::capped_l1);
    const S equal = b >= t / S(2) ? b + t / S(2) : root_of(S(2) * t * b);
    return {T(t < equal ? t : equal), T(equal), T(1), T(t), none, T(0), T(0)};
  }
}

// |z|^p. In units of beta, the smallest non-zero output, the operator has one parameter:
//   t + kappa t^(p-1) = r = |x| / beta,  kappa = p / (2 (1 - p)),  kept where r > 1 + kappa.
// Newton from t = r falls monotonically onto the larger root, since the left side is convex and
// rises for t >= 1. For p = 1/2 and 2/3 the unknown u = t^(1-p) makes it a polynomial:
//   u^3 - r u + 1/2 = 0,  u^4 - r u + 1 = 0.
enum class Power { any, half, two_thirds };

// How many Newton steps the hardest point, the threshold, needs until they change nothing.
template <class T>
int count_rounds(double p, double kappa) noexcept {
  constexpr double tolerance = std::is_same_v<T, float> ? 1e-7 : 4e-16;
  double t = 1.0 + kappa;
  for (int i = 1; i < 64; ++i) {
    const double q = std::exp2((p - 1.0) * std::log2(t));
    const double next = t - (t + kappa * q - (1.0 + kappa)) / (1.0 - p / 2.0 * q / t);
    if (!(t - next > tolerance * t)) return i;
    t = next < 1.0 ? 1.0 : next;
  }
  return 64;
}

template <class T, Power kind>
struct Lp {
  T p, kappa;

  GOSSAMER_INLINE T start(T r) const noexcept {
    if constexpr (kind == Power::half) return root_of(r);
    if constexpr (kind == Power::two_thirds) return power(r, T(1) / T(3));
    return r;
  }
  GOSSAMER_INLINE T improve(T u, T r) const noexcept {
    T next;
    if constexpr (kind == Power::any) {
      const T q = power(u, p - T(1));
      next = u - (u + kappa * q - r) / (T(1) - (p / T(2)) * q / u);
    } else if constexpr (kind == Power::half) {
      const T square = u * u;
      next = u - (u * (square - r) + kappa) / (T(3) * square - r);
    } else {
      const T cube = u * u * u;
      next = u - (u * (cube - r) + kappa) / (T(4) * cube - r);
    }
    return next > T(1) ? next : T(1);
  }
  GOSSAMER_INLINE T finish(T u) const noexcept {
    return kind == Power::any ? u : kind == Power::half ? u * u : u * u * u;
  }
};

// log(1 + |z| / eps): the larger root of a quadratic, where it is better than 0.
// --8<-- [start:operator]
template <class T>
struct LogSum {
  T lam, eps;

  GOSSAMER_INLINE T operator()(T x) const noexcept {
    const T a = size_of(x);
    const T gap = a - eps, sum = a + eps;
    const T inside = T(1) - T(4) * lam / sum / sum;  // divided by sum^2, which may overflow
    const T root = sum * root_of(inside > T(0) ? inside : T(0));
    // The form of the root that subtracts nothing of its own size.
    const T r = gap > T(0) ? gap / T(2) + root / T(2) : T(2) * (eps * a - lam) / (root - gap);
    // In the convex case any positive root is the minimiser; the comparison would only add noise.
    const bool convex = lam <= eps * eps;
    const bool better = convex || !(lam * log1p_of(r / eps) >= r * (a - r / T(2)));
    const bool keep = inside > T(0) && r > T(0) && better;
    return x == x ? (keep ? with_sign(r, x) : T(0)) : x;
  }
};
// --8<-- [end:operator]

// (a + 1) |z| / (a + |z|): the largest root of a cubic, by its cosine (Zhang and Xin 2017). cos and
// acos come from the C library, one entry at a time, in double.
template <class T>
struct TransformedL1 {
  double a, product, threshold;

  // From 1e40 on the penalty is l1 to the last bit, and a cubed would soon be infinite.
  TransformedL1(const double* params, double step) noexcept
      : a(params[1] < 1e40 ? params[1] : 1e40), product(params[0] * step * a * (a + 1.0)) {
    const double lam = params[0] * step;
    threshold = lam <= a * a / (2.0 * (a + 1.0)) ? lam * (a + 1.0) / a
                                                 : std::sqrt(2.0 * lam * (a + 1.0)) - a / 2.0;
  }
  T operator()(T x) const noexcept {
    const double size = std::fabs(static_cast<double>(x));
    if (size <= threshold) return T(0);
    if (!(size < no_end)) return x;
    const double w = a + size;
    const double u = 1.0 - 13.5 * product / (w * w * w);
    const double third = std::acos(u < -1.0 ? -1.0 : u) / 3.0;
    double z = 2.0 / 3.0 * w * std::cos(third) - 2.0 / 3.0 * a + size / 3.0;
    // A Newton step without a's digits in it: where a is much larger than x, they cancel above.
    const double far = a + z;
    const double slope = 1.0 - 2.0 * product / (far * far * far);
    const double better = z - (z - size + product / (far * far)) / slope;
    if (slope > 0.0 && better == better) z = better < size ? better : size;
    const T out = static_cast<T>(std::copysign(z, static_cast<double>(x)));
    return z > 0.0 && out != T(0) ? out : T(0);
  }
};

// The constraint low <= z <= high; no step matters.
template <class T>
struct Box {
  T low, high;

  GOSSAMER_INLINE T operator()(T x) const noexcept {
    const T z = x > high ? high : raised(x, low);
    return z == T(0) ? T(0) : z;
  }
};

// The loop: one operator for all, or one made for each entry.
template <class T, class Make>
GOSSAMER_INLINE void for_each(void* data, const ElementArgs& args, std::int64_t n,
                              Make make) noexcept {
  T* x = static_cast<T*>(data);
  const T floor = T(args.floor);
  if (args.steps == nullptr) {
    const auto op = make(args.step);
    for (std::int64_t i = 0; i < n; ++i) x[i] = op(raised(x[i], floor));
  } else {
    const T* steps = static_cast<const T*>(args.steps);
    for (std::int64_t i = 0; i < n; ++i) x[i] = make(steps[i])(raised(x[i], floor));
  }
}

template <Penalty which, class T>
void run_pieces(void* x, const ElementArgs& args, std::int64_t n) noexcept {
  const double params[penalty_params] = {args.params[0], args.params[1]};
  for_each<T>(x, args, n, [=]<class S>(S step) { return pieces<which, T>(params, step); });
}

// A block at a time, so that each Newton step is one vectorised loop; a block without a survivor
// needs none.
template <class T, Power kind>
void run_power(void* data, const ElementArgs& args, std::int64_t n) noexcept {
  constexpr std::int64_t block = 256;
  const double lam = args.params[0], p = args.params[1];
  const double kappa = p / (2.0 * (1.0 - p));
  // Beyond `far` the shrinkage, kappa / far, is below the last bit; the cap also keeps infinities
  // out.
  const T far = T(1e18 * (1.0 + kappa)), floor = T(args.floor);
  const Lp<T, kind> op{T(p), T(kappa)};
  const int rounds = count_rounds<T>(p, kappa);
  const double uniform = std::pow(2.0 * lam * args.step * (1.0 - p), 1.0 / (2.0 - p));
  const T beta_all = T(uniform), threshold_all = T(uniform * (1.0 + kappa));
  T beta[block], threshold[block], r[block], u[block];
  for (std::int64_t i = 0; i < block; ++i) beta[i] = beta_all;
  for (std::int64_t i = 0; i < block; ++i) threshold[i] = threshold_all;

  for (std::int64_t first = 0; first < n; first += block) {
    T* x = static_cast<T*>(data) + first;
    const std::int64_t count = n - first < block ? n - first : block;
    if (args.steps != nullptr) {
      const T* steps = static_cast<const T*>(args.steps) + first;
      const T scale = T(2.0 * lam * (1.0 - p)), exponent = T(1.0 / (2.0 - p));
      for (std::int64_t i = 0; i < count; ++i) {
        const T product = scale * steps[i];
        const T b = exp2_of(exponent * log2_of(product));
        beta[i] = product > tiny_of<T> ? b : T(0);
        threshold[i] = beta[i] * T(1.0 + kappa);
      }
    }
    int kept = 0;
    for (std::int64_t i = 0; i < count; ++i) x[i] = raised(x[i], floor);
    for (std::int64_t i = 0; i < count; ++i) {
      const T a = size_of(x[i]);
      const T scaled = a / beta[i];
      r[i] = scaled < far ? (scaled > T(1) ? scaled : T(1)) : far;
      kept += !(a <= threshold[i]);
    }
    if (kept > 0) {
      for (std::int64_t i = 0; i < count; ++i) u[i] = op.start(r[i]);
      for (int round = 0; round < rounds; ++round) {
        for (std::int64_t i = 0; i < count; ++i) u[i] = op.improve(u[i], r[i]);
      }
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const T a = size_of(x[i]);
      const T z = r[i] < far ? op.finish(u[i]) * beta[i] : a;
      x[i] = a <= threshold[i] ? T(0) : with_sign(a == a ? z : a, x[i]);
    }
  }
}

template <class T>
void run_lp(void* x, const ElementArgs& args, std::int64_t n) noexcept {
  const double p = args.params[1];
  if (p == 0.5) {
    run_power<T, Power::half>(x, args, n);
  } else if (p == 2.0 / 3.0) {
    run_power<T, Power::two_thirds>(x, args, n);
  } else {
    run_power<T, Power::any>(x, args, n);
  }
}

// --8<-- [start:run]
template <class T>
void run_log_sum(void* x, const ElementArgs& args, std::int64_t n) noexcept {
  const double lam = args.params[0];
  const T eps = T(args.params[1]);
  for_each<T>(x, args, n, [=]<class S>(S step) { return LogSum<T>{T(S(lam) * step), eps}; });
}
// --8<-- [end:run]

template <class T>
void run_transformed_l1(void* x, const ElementArgs& args, std::int64_t n) noexcept {
  const double* params = args.params;
  for_each<T>(x, args, n, [=](double step) { return TransformedL1<T>(params, step); });
}

template <class T>
void run_box(void* x, const ElementArgs& args, std::int64_t n) noexcept {
  const Box<T> op{T(args.params[0]), T(args.params[1])};
  for_each<T>(x, args, n, [=](auto) { return op; });
}

// --8<-- [start:choice]
// The loop of a penalty's own; null for those that are straight lines, see `pieces`.
template <Penalty which, class T>
constexpr auto own_loop() noexcept {
  if constexpr (which == Penalty::lp) {
    return run_lp<T>;
  } else if constexpr (which == Penalty::transformed_l1) {
    return run_transformed_l1<T>;
  } else if constexpr (which == Penalty::log_sum) {
    return run_log_sum<T>;
  } else if constexpr (which == Penalty::box) {
    return run_box<T>;
  } else {
    return nullptr;
  }
}
// --8<-- [end:choice]

// By its type: under UBSan GCC takes no comparison of a function's address for a constant.
template <Penalty which, class T>
inline constexpr bool has_own_loop =
    !std::is_same_v<decltype(own_loop<which, T>()), std::nullptr_t>;

template <Penalty which, class T>
constexpr ElementKernel element_kernel() noexcept {
  if constexpr (!has_own_loop<which, T>) {
    return run_pieces<which, T>;
  } else {
    return own_loop<which, T>();
  }
}

}  // namespace
}  // namespace gossamer
