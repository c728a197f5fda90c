// Selection of float32 without dealing the groups out: 16 columns are a register, of which a mask
// says what is kept, and compressing by that mask packs values and column ids.
#pragma once

#include "masks/select_table.hpp"
#include "simd/keys.hpp"

#if GOSSAMER_HAS_KEYS
namespace gossamer {
namespace {

constexpr int mask_columns = 16;
// The bytes that are fetched ahead along a row: the processor itself stops at the end of a page.
constexpr std::int64_t fetched_ahead = 1024;

// For every rotation of a group of m lanes: where lane j finds its partner, and -1 where that one
// stands before it and so wins ties.
template <class Lane, int M, int lanes>
struct Rotations {
  alignas(64) Lane from[M][lanes];
  alignas(64) Lane tie[M][lanes];
};
template <class Lane, int M, int lanes>
constexpr Rotations<Lane, M, lanes> make_rotations() noexcept {
  Rotations<Lane, M, lanes> r{};
  for (int k = 1; k < M; ++k) {
    for (int i = 0; i < lanes; ++i) {
      r.from[k][i] = i / M * M + (i + k) % M;
      r.tie[k][i] = i % M + k >= M ? -1 : 0;
    }
  }
  return r;
}

// In every lane the largest of its group of M, and the second largest.
template <int M, class K>
GOSSAMER_INLINE K largest(K x) noexcept {
  x = max(x, K::template swap<1>(x));
  if constexpr (M > 2) x = max(x, K::template swap<2>(x));
  if constexpr (M > 4) x = max(x, K::template swap<4>(x));
  if constexpr (M > 8) x = max(x, K::template swap<8>(x));
  return x;
}
template <int by, class K>
GOSSAMER_INLINE void meet(K& top, K& next) noexcept {
  const K other = K::template swap<by>(top);
  next = max(max(next, K::template swap<by>(next)), min(top, other));
  top = max(top, other);
}
template <int M, class K>
GOSSAMER_INLINE K second(K x) noexcept {
  const K other = K::template swap<1>(x);
  K top = max(x, other), next = min(x, other);
  meet<2>(top, next);
  if constexpr (M > 4) meet<4>(top, next);
  if constexpr (M > 8) meet<8>(top, next);
  return next;
}

// The lowest bit of each field of M bits; none is empty, so no borrow leaves its field.
template <int M, int lanes>
GOSSAMER_INLINE unsigned lowest(unsigned mask) noexcept {
  constexpr unsigned all = (1u << lanes) - 1;
  constexpr unsigned ones = (M == 4 ? 0x1111 : M == 8 ? 0x0101 : 1) & all;
  return mask & ~(mask - ones);
}

// Which lanes are among the n largest of their group of M; N is n where it is known.
template <int M, int N, class K>
GOSSAMER_INLINE unsigned keep(K key, int n) noexcept {
  using Lane = typename K::Lane;
  static constexpr Rotations<Lane, M, K::lanes> rotations = make_rotations<Lane, M, K::lanes>();
  const auto rotated = [&](int k, K x) __attribute__((always_inline)) {
    return permute(K::load(rotations.from[k]), x);
  };
  // Negative where the partner k lanes on is ahead; the partner itself sees the opposite.
  const auto behind = [&](int k) __attribute__((always_inline)) {
    return sub(add(key, K::load(rotations.tie[k])), rotated(k, key));
  };
  const auto lowest_of = [](unsigned mask)
                             __attribute__((always_inline)) { return lowest<M, K::lanes>(mask); };
  if constexpr (M == 4 && N == 2) {
    // Kept where not two of the three others are ahead, the third of which is read backwards.
    const K one = behind(1);
    return negative(under_two(one, behind(2), rotated(3, one)));
  } else if constexpr (N == 2) {
    // Without a tie, exactly two lanes per group are >= the second largest.
    const unsigned kept = not_less(key, second<M>(key));
    if (__builtin_popcount(kept) == 2 * K::lanes / M) [[likely]]
      return kept;
    const unsigned first = lowest_of(equal(key, largest<M>(key)));
    key = lowered(key, first);
    return first | lowest_of(equal(key, largest<M>(key)));
  } else if constexpr (N == 1) {
    return lowest_of(equal(key, largest<M>(key)));
  } else {
    K rank = K::zero();
#pragma GCC unroll 16
    for (int k = 1; k < M; ++k) rank = add(rank, signs(behind(k)));
    return greater(rank, -n);
  }
}

template <int M, int N>
void mask_rows(const SelectUnit& u) noexcept {
  const int n = N == 0 ? static_cast<int>(u.n) : N, count = mask_columns / M * n;
  float* values = static_cast<float*>(u.values);
  std::uint8_t* ids = u.indices;
  for (std::int64_t p = 0; p < u.panels; ++p) {
    const float* row = static_cast<const float*>(u.rows) + p * u.row_stride;
    for (int c = 0; c < u.width; c += mask_columns) {
      __builtin_prefetch(reinterpret_cast<const char*>(row + c) + fetched_ahead, 0, 3);
      const Vec<float> x = Vec<float>::load(row + c);
      const Keys<float> key = magnitudes(Keys<float>::of(x));
      if constexpr (M >= 8 && N == 1) {
        const unsigned top = equal(key, largest<M>(key));
#pragma GCC unroll 2
        for (int g = 0; g < count; ++g) {
          const int at = c + __builtin_ctz(top & (0xffffu << g * M));
          values[g] = row[at];
          ids[g] = static_cast<std::uint8_t>(at);
        }
      } else {
        const unsigned kept = keep<M, N>(key, n);
        store_first(values, compress(x, kept), count);
        store_ids(ids, kept, c, count);
      }
      values += count;
      ids += count;
    }
  }
}

// Panels of four rows, at most half of whose columns are kept.
template <int M, int N>
void mask_panels(const SelectUnit& u) noexcept {
  const int n = N == 0 ? static_cast<int>(u.n) : N, count = mask_columns / M * n;
  float* values = static_cast<float*>(u.values);
  std::uint8_t* ids = u.indices;
  for (std::int64_t p = 0; p < u.panels; ++p) {
    const float* row = static_cast<const float*>(u.rows) + p * 4 * u.row_stride;
    for (int c = 0; c < u.width; c += mask_columns) {
      Vec<float> x[4];
      Vec<double> left = Vec<double>::zero(), right = left;
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const float* from = row + v * u.row_stride + c;
        __builtin_prefetch(reinterpret_cast<const char*>(from) + fetched_ahead, 0, 3);
        x[v] = Vec<float>::load(from);
        const Vec<float> size = absolute(x[v]);
        left = v == 0 ? lower(size) : add(left, lower(size));
        right = v == 0 ? upper(size) : add(right, upper(size));
      }
      const unsigned kept = (keep<M, N>(magnitudes(Keys<double>::of(left)), n) & 0xff) |
                            keep<M, N>(magnitudes(Keys<double>::of(right)), n) << 8;
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) x[v] = compress(x[v], kept);
      if (count < 4) {
        store_where(values, entries_of_four(x), (1u << (4 * count)) - 1);
      } else {
        entries_of_four(x).store(values);
      }
      if (count > 4) {
        store_where(values + 16, entries_behind(x), (1u << (4 * count - 16)) - 1);
      }
      store_ids(ids, kept, c, count);
      values += 4 * count;
      ids += count;
    }
  }
}

// Summed in float64, where the product is exact.
void add_pruned_f32(void* out, const void* source, double alpha, const std::uint8_t* kept,
                    std::int64_t count) noexcept {
  float* y = static_cast<float*>(out);
  const float* x = static_cast<const float*>(source);
  const Vec<double> factor = Vec<double>::set(static_cast<float>(alpha));
  for (std::int64_t i = 0; i < count; i += mask_columns) {
    const std::int64_t left = count - i;
    const unsigned part = left < mask_columns ? (1u << left) - 1 : 0xffff;
    __builtin_prefetch(reinterpret_cast<const char*>(y + i) + fetched_ahead, 1, 3);
    __builtin_prefetch(reinterpret_cast<const char*>(x + i) + fetched_ahead, 0, 3);
    const Vec<float> a = load_where(y + i, part), b = load_where(x + i, part);
    const Vec<float> sum =
        narrow_halves(fma(factor, lower(b), lower(a)), fma(factor, upper(b), upper(a)));
    store_where(y + i, sum, zero_bytes(kept + i, part));
  }
}

template <int M>
bool select_masked(const SelectUnit& u) noexcept {
  const auto run = [&](auto one, auto two, auto any) {
    u.n == 1 ? one(u) : u.n == 2 ? two(u) : any(u);
    return true;
  };
  if (u.vector == 1) return run(mask_rows<M, 1>, mask_rows<M, 2>, mask_rows<M, 0>);
  if constexpr (M <= 8) {
    if (u.vector == 4 && 2 * u.n <= M) {
      return run(mask_panels<M, 1>, mask_panels<M, 2>, mask_panels<M, 0>);
    }
  }
  return false;
}

// Whether the unit was one for masks, and is done.
GOSSAMER_INLINE bool select_near(const SelectUnit& u) noexcept {
  if (u.m == 4) return select_masked<4>(u);
  if (u.m == 8) return select_masked<8>(u);
  return u.m == 16 && select_masked<16>(u);
}

GOSSAMER_INLINE bool select_masked(const SelectUnit& u) noexcept {
  constexpr std::int64_t most = 2048;
  if (u.width % mask_columns != 0) return false;
  const std::int64_t count = u.panels * (u.width / u.m) * u.n;
  const auto lines = [](const void* to, std::int64_t bytes) {
    return (reinterpret_cast<std::uintptr_t>(to) | static_cast<std::uintptr_t>(bytes)) % 64 == 0;
  };
  if (!u.stream || count * u.vector > most || !lines(u.indices, count) ||
      !lines(u.values, count * u.vector * 4)) {
    return select_near(u);
  }
  alignas(64) float values[most];
  alignas(64) std::uint8_t indices[most];
  SelectUnit near = u;
  near.values = values, near.indices = indices;
  if (!select_near(near)) return false;
  stream(u.values, values, count * u.vector * 4);
  stream(u.indices, indices, count);
  return true;
}

}  // namespace
}  // namespace gossamer
#endif
