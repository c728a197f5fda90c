// One sample of n of each m entries a with E[sample] = a (Chmiel et al. 2022, arXiv 2203.10991).
//
//   exact:        p_i = min(1, c |a_i|) with sum p = n, the least variance; drawn systematically
//   approximate:  two draws without replacement proportional to |a|
//
// A chosen entry becomes a_i / p_i. Groups run down the columns of x, so that neighbouring columns
// are the lanes of a vector and no step crosses lanes. Probabilities are whole multiples of 2^-30:
// a draw is an addition that carries, and the division uses the very number that was drawn with.
// No step depends on whether the compiler fuses a product into a sum: all tables give equal bits.
#pragma once

#include "masks/mvue_table.hpp"
#include "simd/bits.hpp"
#include "simd/random.hpp"

namespace gossamer {
namespace {

constexpr int mvue_lanes = 32;
constexpr std::int32_t mvue_sure = 1 << 30;          // probability 1
constexpr std::int32_t mvue_filler = mvue_sure + 1;  // stays, as zero, to make the count n

template <class T>
struct MvueScratch {
  T raw[64][mvue_lanes];    // the entries, then what becomes of them
  T score[64][mvue_lanes];  // |a| relative to the largest of its group
  T rest[64][mvue_lanes];
  T ratio[64][mvue_lanes];
  std::int32_t q[64][mvue_lanes];  // probability * 2^30; after the draw negative where not chosen
  std::int32_t nonzero[mvue_lanes];
};

template <class T>
GOSSAMER_INLINE T mvue_size(T x) noexcept {
  return x < T(0) ? -x : x;
}

// Scores in [0, 1]. In a group that holds infinities or NaN these alone count, so that they reach
// the result and whoever looks for them.
template <class T>
GOSSAMER_INLINE void mvue_scores(MvueScratch<T>& s, int m) noexcept {
  constexpr T most = sizeof(T) == 4 ? T(3.4028234663852886e38) : T(1.7976931348623157e308);
  constexpr T tiny = sizeof(T) == 4 ? T(1.2e-38) : T(2.3e-308);
  T top[mvue_lanes] = {}, bad[mvue_lanes] = {};
  for (int i = 0; i < m; ++i) {
    for (int l = 0; l < mvue_lanes; ++l) {
      const T a = mvue_size(s.raw[i][l]);
      const bool finite = a <= most;
      bad[l] = finite ? bad[l] : T(1);
      top[l] = finite && a > top[l] ? a : top[l];
    }
  }
  for (int l = 0; l < mvue_lanes; ++l) {
    top[l] = top[l] > T(0) ? top[l] : T(1);
    s.nonzero[l] = 0;
  }
  for (int i = 0; i < m; ++i) {
    for (int l = 0; l < mvue_lanes; ++l) {
      const T a = mvue_size(s.raw[i][l]);
      const T odd = a <= most ? T(0) : T(1);
      const T share = a / top[l];
      const T some = share > tiny || !(a > T(0)) ? share : tiny;  // nothing vanishes
      const T score = bad[l] > T(0) ? odd : some;
      s.score[i][l] = score;
      s.nonzero[l] += score > T(0) ? 1 : 0;
    }
  }
}

template <class T>
GOSSAMER_INLINE std::int32_t mvue_fixed(T p) noexcept {
  const T bounded = p < T(1) ? p : T(1);
  const auto q = static_cast<std::int32_t>(bounded * T(mvue_sure) + T(0.5));
  return q < 1 ? 1 : q;
}

// Water filling: an entry whose share of what is left exceeds 1 is sure, and leaves the rest to
// the others; at most n - 1 rounds find one.
template <class T>
GOSSAMER_INLINE void mvue_exact(MvueScratch<T>& s, int n, int m) noexcept {
  T left[mvue_lanes], sum[mvue_lanes];
  for (int l = 0; l < mvue_lanes; ++l) left[l] = T(n);
  for (int i = 0; i < m; ++i) {
    for (int l = 0; l < mvue_lanes; ++l) s.q[i][l] = 0;
  }
  for (int round = 0; round < n; ++round) {
    T taken[mvue_lanes] = {};
    for (int l = 0; l < mvue_lanes; ++l) sum[l] = T(0);
    for (int i = 0; i < m; ++i) {
      for (int l = 0; l < mvue_lanes; ++l) sum[l] += s.q[i][l] == 0 ? s.score[i][l] : T(0);
    }
    for (int i = 0; i < m; ++i) {
      for (int l = 0; l < mvue_lanes; ++l) {
        const T open = s.q[i][l] == 0 ? s.score[i][l] : T(0);
        const bool sure = open * left[l] > sum[l];
        s.q[i][l] = sure ? mvue_sure : s.q[i][l];
        taken[l] += sure ? T(1) : T(0);
      }
    }
    T all = T(0);
    for (int l = 0; l < mvue_lanes; ++l) {
      left[l] -= taken[l];
      all = taken[l] > T(0) ? T(1) : all;
    }
    if (all == T(0)) break;
  }
  for (int l = 0; l < mvue_lanes; ++l) sum[l] = T(0);
  for (int i = 0; i < m; ++i) {
    for (int l = 0; l < mvue_lanes; ++l) sum[l] += s.q[i][l] == 0 ? s.score[i][l] : T(0);
  }
  for (int l = 0; l < mvue_lanes; ++l) sum[l] = sum[l] > T(0) ? sum[l] : T(1);
  for (int i = 0; i < m; ++i) {
    for (int l = 0; l < mvue_lanes; ++l) {
      const T score = s.score[i][l];
      // With no more than n entries each of them is sure, to the last bit.
      const std::int32_t q =
          s.nonzero[l] <= n ? mvue_sure : mvue_fixed<T>(score / sum[l] * left[l]);
      s.q[i][l] = score > T(0) ? (s.q[i][l] == 0 ? q : s.q[i][l]) : 0;
    }
  }
}

// Systematic sampling: walk along the probabilities from a random start below 1, and choose where
// the sum passes a whole number.
template <class T>
GOSSAMER_INLINE void mvue_systematic(MvueScratch<T>& s, int m,
                                     const std::uint64_t* draws) noexcept {
  std::int32_t walk[mvue_lanes];
  for (int l = 0; l < mvue_lanes; ++l) walk[l] = static_cast<std::int32_t>(draws[l] >> 34);
  for (int i = 0; i < m; ++i) {
    for (int l = 0; l < mvue_lanes; ++l) {
      const std::int32_t q = s.q[i][l];
      const std::int32_t next = walk[l] + q;
      const bool chosen = next >= mvue_sure;
      walk[l] = chosen ? next - mvue_sure : next;
      s.q[i][l] = chosen ? q : -q;
    }
  }
}

// out_i = sum over j != i of in_j, without a difference that could cancel; returns the whole sum.
template <class T>
GOSSAMER_INLINE void mvue_others(const T (&in)[64][mvue_lanes], T (&out)[64][mvue_lanes], int m,
                                 T* whole) noexcept {
  T after[mvue_lanes] = {};
  for (int l = 0; l < mvue_lanes; ++l) whole[l] = T(0);
  for (int i = 0; i < m; ++i) {
    for (int l = 0; l < mvue_lanes; ++l) {
      out[i][l] = whole[l];
      whole[l] += in[i][l];
    }
  }
  for (int i = m - 1; i >= 0; --i) {
    for (int l = 0; l < mvue_lanes; ++l) {
      out[i][l] += after[l];
      after[l] += in[i][l];
    }
  }
}

template <class T>
GOSSAMER_INLINE T mvue_uniform(std::uint64_t draw) noexcept {
  if constexpr (sizeof(T) == 4) {
    return static_cast<T>(static_cast<std::int32_t>(draw >> 40)) * T(1.0 / (1 << 24));
  } else {
    return static_cast<T>(static_cast<std::int64_t>(draw >> 11)) *
           T(1.0 / static_cast<double>(std::int64_t{1} << 53));
  }
}

// p_i = |a_i| / S (1 + sum over j != i of |a_j| / (S - |a_j|)), S the sum of |a|; n = 2.
template <class T>
GOSSAMER_INLINE void mvue_two_draws(MvueScratch<T>& s, int m, const std::uint64_t* draws) noexcept {
  T sum[mvue_lanes], unused[mvue_lanes], target[mvue_lanes], before[mvue_lanes] = {};
  T rest_first[mvue_lanes] = {};
  std::int32_t first[mvue_lanes], second[mvue_lanes];
  mvue_others(s.score, s.rest, m, sum);
  for (int l = 0; l < mvue_lanes; ++l) {
    first[l] = second[l] = -1;
    target[l] = mvue_uniform<T>(draws[l]) * sum[l];
  }
  for (int i = 0; i < m; ++i) {
    for (int l = 0; l < mvue_lanes; ++l) {
      const T score = s.score[i][l];
      const bool here = score > T(0) && before[l] <= target[l];
      first[l] = here ? i : first[l];
      rest_first[l] = here ? s.rest[i][l] : rest_first[l];
      before[l] += score;
      s.ratio[i][l] = s.rest[i][l] > T(0) ? score / s.rest[i][l] : T(0);
    }
  }
  for (int l = 0; l < mvue_lanes; ++l) {
    target[l] = mvue_uniform<T>(random_at(draws[l], 1)) * rest_first[l];
    before[l] = T(0);
  }
  for (int i = 0; i < m; ++i) {
    for (int l = 0; l < mvue_lanes; ++l) {
      const T score = i == first[l] ? T(0) : s.score[i][l];
      second[l] = score > T(0) && before[l] <= target[l] ? i : second[l];
      before[l] += score;
    }
  }
  mvue_others(s.ratio, s.rest, m, unused);
  for (int i = 0; i < m; ++i) {
    for (int l = 0; l < mvue_lanes; ++l) {
      const T score = s.score[i][l];
      std::int32_t q = mvue_fixed<T>(score / sum[l] * (T(1) + s.rest[i][l]));
      q = s.nonzero[l] <= 2 ? mvue_sure : q;
      q = score > T(0) ? q : 0;
      s.q[i][l] = i == first[l] || i == second[l] ? q : -q;
    }
  }
}

// Exactly n: rounding may leave a draw one short or one over (about one group in 10^6), and a group
// with fewer than n entries other than zero is filled up with zeros, the lowest first.
template <class T>
GOSSAMER_INLINE void mvue_settle(MvueScratch<T>& s, int n, int m, int lane, int chosen) noexcept {
  for (int i = m - 1; i >= 0 && chosen > n; --i) {
    const std::int32_t q = s.q[i][lane];
    if (q <= 0 || q == mvue_sure) continue;
    s.q[i][lane] = -q;
    --chosen;
  }
  for (int i = 0; i < m && chosen < n; ++i) {
    if (s.q[i][lane] >= 0) continue;
    s.q[i][lane] = -s.q[i][lane];
    ++chosen;
  }
  for (int i = 0; i < m && chosen < n; ++i) {
    if (s.q[i][lane] != 0) continue;
    s.q[i][lane] = mvue_filler;
    ++chosen;
  }
}

template <class In, class T>
GOSSAMER_INLINE void mvue_load(MvueScratch<T>& s, const Matrix& x, std::int64_t token, int m,
                               std::int64_t col, int count) noexcept {
  for (int i = 0; i < m; ++i) {
    T* to = s.raw[i];
    for (int l = 0; l < mvue_lanes; ++l) to[l] = T(0);
    if (token + i >= x.rows) continue;
    const In* from =
        static_cast<const In*>(x.data) + (token + i) * x.row_stride + col * x.col_stride;
    if (x.col_stride == 1) {
      for (int l = 0; l < count; ++l) to[l] = widen(from[l]);
    } else {
      for (int l = 0; l < count; ++l) to[l] = widen(from[l * x.col_stride]);
    }
  }
}

template <class In, class T>
void mvue_sample(const MvueArgs& args, std::int64_t block, std::int64_t first,
                 std::int64_t last) noexcept {
  const Panels& out = args.out;
  const int n = static_cast<int>(out.n), m = static_cast<int>(out.m);
  const std::int64_t groups = out.block_width(block) / m;
  alignas(64) MvueScratch<T> s;
  alignas(64) std::uint64_t draws[mvue_lanes];
  // Columns outside: 32 output streams at a time fit the ways of the first-level cache.
  for (std::int64_t col = first; col < last; col += mvue_lanes) {
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t token = block * out.block_cols + group * m;
      const int count = static_cast<int>(last - col < mvue_lanes ? last - col : mvue_lanes);
      mvue_load<In, T>(s, args.x, token, m, col, count);
      const auto place = static_cast<std::uint64_t>(token / m * args.x.cols + col + 1);
      for (int l = 0; l < mvue_lanes; ++l) {
        draws[l] = random_at(args.key, place + static_cast<std::uint64_t>(l));
      }
      mvue_scores(s, m);
      if (args.approximate) {
        mvue_two_draws(s, m, draws);
      } else {
        mvue_exact(s, n, m);
        mvue_systematic(s, m, draws);
      }
      std::int32_t chosen[mvue_lanes] = {};
      for (int i = 0; i < m; ++i) {
        for (int l = 0; l < mvue_lanes; ++l) chosen[l] += s.q[i][l] > 0 ? 1 : 0;
      }
      for (int l = 0; l < count; ++l) {
        if (chosen[l] != n) mvue_settle(s, n, m, l, chosen[l]);
      }
      for (int i = 0; i < m; ++i) {
        for (int l = 0; l < mvue_lanes; ++l) {
          const std::int32_t q = s.q[i][l];
          const T value = s.raw[i][l] / (static_cast<T>(q) * T(1.0 / mvue_sure));
          s.raw[i][l] = q == mvue_filler ? T(0) : value;
        }
      }
      for (int l = 0; l < count; ++l) {
        // Each entry is written and the place moves on where it stays: nobody can foretell a draw,
        // so a branch on it would be mispredicted.
        In values[65];
        std::uint8_t ids[65];
        int at = 0;
        for (int i = 0; i < m; ++i) {
          narrow(s.raw[i][l], values[at]);
          ids[at] = static_cast<std::uint8_t>(group * m + i);
          at += s.q[i][l] > 0 ? 1 : 0;
        }
        const std::int64_t to = out.entries(block, col + l).begin + group * n;
        for (int i = 0; i < n; ++i) {
          static_cast<In*>(args.values)[to + i] = values[i];
          args.indices[to + i] = ids[i];
        }
      }
    }
  }
}

constexpr MvuePasses mvue_passes = {
    {mvue_sample<float, float>, mvue_sample<double, double>, mvue_sample<bf16, float>}};

}  // namespace
}  // namespace gossamer
