// Selection of float32 without dealing the groups out: 16 columns are a register, of which a mask
// says what is kept, and compressing by that mask packs values and column ids.
#pragma once

#include <immintrin.h>

#include "masks/select_table.hpp"
#include "simd/bits.hpp"

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

// The words in which a mask is found, for keys of float32 and of float64.
struct Lanes32 {
  using Lane = std::int32_t;
  static constexpr int lanes = 16;
  static GOSSAMER_INLINE __m512i key(__m512i bits) noexcept {
    return _mm512_min_epi32(_mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)),
                            _mm512_set1_epi32(FloatBits<float>::nan));
  }
  static GOSSAMER_INLINE __m512i add(__m512i a, __m512i b) noexcept {
    return _mm512_add_epi32(a, b);
  }
  static GOSSAMER_INLINE __m512i sub(__m512i a, __m512i b) noexcept {
    return _mm512_sub_epi32(a, b);
  }
  static GOSSAMER_INLINE __m512i permute(__m512i from, __m512i a) noexcept {
    return _mm512_permutexvar_epi32(from, a);
  }
  static GOSSAMER_INLINE __m512i signs(__m512i a) noexcept { return _mm512_srai_epi32(a, 31); }
  static GOSSAMER_INLINE unsigned negative(__m512i a) noexcept { return _mm512_movepi32_mask(a); }
  static GOSSAMER_INLINE unsigned greater(__m512i a, int n) noexcept {
    return _mm512_cmpgt_epi32_mask(a, _mm512_set1_epi32(n));
  }
  static GOSSAMER_INLINE unsigned equal(__m512i a, __m512i b) noexcept {
    return _mm512_cmpeq_epi32_mask(a, b);
  }
  static GOSSAMER_INLINE __m512i drop(__m512i a, unsigned mask) noexcept {
    return _mm512_mask_set1_epi32(a, static_cast<__mmask16>(mask), -1);
  }
  static GOSSAMER_INLINE unsigned not_less(__m512i a, __m512i b) noexcept {
    return _mm512_cmpge_epi32_mask(a, b);
  }
  static GOSSAMER_INLINE __m512i max(__m512i a, __m512i b) noexcept {
    return _mm512_max_epi32(a, b);
  }
  static GOSSAMER_INLINE __m512i min(__m512i a, __m512i b) noexcept {
    return _mm512_min_epi32(a, b);
  }
  // Lane i is x[i ^ by].
  template <int by>
  static GOSSAMER_INLINE __m512i swap(__m512i x) noexcept {
    if constexpr (by == 1) return _mm512_shuffle_epi32(x, _MM_PERM_CDAB);
    if constexpr (by == 2) return _mm512_shuffle_epi32(x, _MM_PERM_BADC);
    if constexpr (by == 4) return _mm512_shuffle_i32x4(x, x, 0xb1);
    if constexpr (by == 8) return _mm512_shuffle_i32x4(x, x, 0x4e);
  }
};

struct Lanes64 {
  using Lane = std::int64_t;
  static constexpr int lanes = 8;
  static GOSSAMER_INLINE __m512i key(__m512i bits) noexcept {
    return _mm512_min_epi64(_mm512_and_si512(bits, _mm512_set1_epi64(0x7fffffffffffffff)),
                            _mm512_set1_epi64(FloatBits<double>::nan));
  }
  static GOSSAMER_INLINE __m512i add(__m512i a, __m512i b) noexcept {
    return _mm512_add_epi64(a, b);
  }
  static GOSSAMER_INLINE __m512i sub(__m512i a, __m512i b) noexcept {
    return _mm512_sub_epi64(a, b);
  }
  static GOSSAMER_INLINE __m512i permute(__m512i from, __m512i a) noexcept {
    return _mm512_permutexvar_epi64(from, a);
  }
  static GOSSAMER_INLINE __m512i signs(__m512i a) noexcept { return _mm512_srai_epi64(a, 63); }
  static GOSSAMER_INLINE unsigned negative(__m512i a) noexcept { return _mm512_movepi64_mask(a); }
  static GOSSAMER_INLINE unsigned greater(__m512i a, int n) noexcept {
    return _mm512_cmpgt_epi64_mask(a, _mm512_set1_epi64(n));
  }
  static GOSSAMER_INLINE unsigned equal(__m512i a, __m512i b) noexcept {
    return _mm512_cmpeq_epi64_mask(a, b);
  }
  static GOSSAMER_INLINE __m512i drop(__m512i a, unsigned mask) noexcept {
    return _mm512_mask_set1_epi64(a, static_cast<__mmask8>(mask), -1);
  }
  static GOSSAMER_INLINE unsigned not_less(__m512i a, __m512i b) noexcept {
    return _mm512_cmpge_epi64_mask(a, b);
  }
  static GOSSAMER_INLINE __m512i max(__m512i a, __m512i b) noexcept {
    return _mm512_max_epi64(a, b);
  }
  static GOSSAMER_INLINE __m512i min(__m512i a, __m512i b) noexcept {
    return _mm512_min_epi64(a, b);
  }
  // Lane i is x[i ^ by].
  template <int by>
  static GOSSAMER_INLINE __m512i swap(__m512i x) noexcept {
    if constexpr (by == 1) return _mm512_shuffle_epi32(x, _MM_PERM_BADC);
    if constexpr (by == 2) return _mm512_permutex_epi64(x, 0x4e);
    if constexpr (by == 4) return _mm512_shuffle_i64x2(x, x, 0x4e);
  }
};

// In every lane the largest of its group of M, and the second largest.
template <class L, int M>
GOSSAMER_INLINE __m512i largest(__m512i x) noexcept {
  x = L::max(x, L::template swap<1>(x));
  if constexpr (M > 2) x = L::max(x, L::template swap<2>(x));
  if constexpr (M > 4) x = L::max(x, L::template swap<4>(x));
  if constexpr (M > 8) x = L::max(x, L::template swap<8>(x));
  return x;
}
template <class L, int by>
GOSSAMER_INLINE void meet(__m512i& top, __m512i& next) noexcept {
  const __m512i other = L::template swap<by>(top);
  next = L::max(L::max(next, L::template swap<by>(next)), L::min(top, other));
  top = L::max(top, other);
}
template <class L, int M>
GOSSAMER_INLINE __m512i second(__m512i x) noexcept {
  const __m512i other = L::template swap<1>(x);
  __m512i top = L::max(x, other), next = L::min(x, other);
  meet<L, 2>(top, next);
  if constexpr (M > 4) meet<L, 4>(top, next);
  if constexpr (M > 8) meet<L, 8>(top, next);
  return next;
}

// The lowest bit of each field of M bits; none is empty, so no borrow leaves its field.
template <class L, int M>
GOSSAMER_INLINE unsigned lowest(unsigned mask) noexcept {
  constexpr unsigned all = (1u << L::lanes) - 1;
  constexpr unsigned ones = (M == 4 ? 0x1111 : M == 8 ? 0x0101 : 1) & all;
  return mask & ~(mask - ones);
}

// Which lanes are among the n largest of their group of M; N is n where it is known.
template <class L, int M, int N>
GOSSAMER_INLINE unsigned keep(__m512i key, int n) noexcept {
  using Lane = typename L::Lane;
  static constexpr Rotations<Lane, M, L::lanes> rotations = make_rotations<Lane, M, L::lanes>();
  const auto rotated = [&](int k, __m512i x) __attribute__((always_inline)) {
    return L::permute(_mm512_load_si512(rotations.from[k]), x);
  };
  // Negative where the partner k lanes on is ahead; the partner itself sees the opposite.
  const auto behind = [&](int k) __attribute__((always_inline)) {
    return L::sub(L::add(key, _mm512_load_si512(rotations.tie[k])), rotated(k, key));
  };
  if constexpr (M == 4 && N == 2) {
    // Kept where not two of the three others are ahead, the third of which is read backwards.
    const __m512i one = behind(1);
    return L::negative(_mm512_ternarylogic_epi32(one, behind(2), rotated(3, one), 0x2b));
  } else if constexpr (N == 2) {
    // Without a tie, exactly two lanes per group are >= the second largest.
    const unsigned kept = L::not_less(key, second<L, M>(key));
    if (__builtin_popcount(kept) == 2 * L::lanes / M) [[likely]]
      return kept;
    const unsigned first = lowest<L, M>(L::equal(key, largest<L, M>(key)));
    key = L::drop(key, first);
    return first | lowest<L, M>(L::equal(key, largest<L, M>(key)));
  } else if constexpr (N == 1) {
    return lowest<L, M>(L::equal(key, largest<L, M>(key)));
  } else {
    __m512i rank = _mm512_setzero_si512();
#pragma GCC unroll 16
    for (int k = 1; k < M; ++k) rank = L::add(rank, L::signs(behind(k)));
    return L::greater(rank, -n);
  }
}

GOSSAMER_INLINE void store_first(float* to, __m512 x, int count) noexcept {
  if (count == 8) {
    _mm256_storeu_ps(to, _mm512_castps512_ps256(x));
  } else if (count == 4) {
    _mm_storeu_ps(to, _mm512_castps512_ps128(x));
  } else if (count == 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(to), _mm512_castps512_ps128(x));
  } else {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), x);
  }
}

GOSSAMER_INLINE void store_ids(std::uint8_t* to, unsigned kept, int col, int count) noexcept {
  const __m512i columns = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i ids = _mm512_maskz_compress_epi32(
      static_cast<__mmask16>(kept), _mm512_add_epi32(columns, _mm512_set1_epi32(col)));
  const __m128i bytes = _mm512_cvtepi32_epi8(ids);
  if (count == 8) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), bytes);
  } else if (count == 4) {
    _mm_storeu_si32(to, bytes);
  } else if (count == 2) {
    _mm_storeu_si16(to, bytes);
  } else {
    _mm_mask_storeu_epi8(to, static_cast<__mmask16>((1u << count) - 1), bytes);
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
      const __m512i bits = _mm512_loadu_si512(row + c);
      const __m512i key = Lanes32::key(bits);
      if constexpr (M >= 8 && N == 1) {
        const unsigned top = Lanes32::equal(key, largest<Lanes32, M>(key));
#pragma GCC unroll 2
        for (int g = 0; g < count; ++g) {
          const int at = c + __builtin_ctz(top & (0xffffu << g * M));
          values[g] = row[at];
          ids[g] = static_cast<std::uint8_t>(at);
        }
      } else {
        const unsigned kept = keep<Lanes32, M, N>(key, n);
        store_first(
            values,
            _mm512_maskz_compress_ps(static_cast<__mmask16>(kept), _mm512_castsi512_ps(bits)),
            count);
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
  // Rows 0 and 1, then rows 2 and 3, as entries of four: 0 to 3, and 4 to 7.
  const __m512i low = _mm512_set_epi32(27, 19, 11, 3, 26, 18, 10, 2, 25, 17, 9, 1, 24, 16, 8, 0);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(4));
  const __m512 absolute = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff));
  float* values = static_cast<float*>(u.values);
  std::uint8_t* ids = u.indices;
  for (std::int64_t p = 0; p < u.panels; ++p) {
    const float* row = static_cast<const float*>(u.rows) + p * 4 * u.row_stride;
    for (int c = 0; c < u.width; c += mask_columns) {
      __m512 x[4];
      __m512d left = _mm512_setzero_pd(), right = left;
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const float* from = row + v * u.row_stride + c;
        __builtin_prefetch(reinterpret_cast<const char*>(from) + fetched_ahead, 0, 3);
        x[v] = _mm512_loadu_ps(from);
        const __m512 size = _mm512_and_ps(x[v], absolute);
        const __m512d l = _mm512_cvtps_pd(_mm512_castps512_ps256(size));
        const __m512d r = _mm512_cvtps_pd(_mm512_extractf32x8_ps(size, 1));
        left = v == 0 ? l : _mm512_add_pd(left, l);
        right = v == 0 ? r : _mm512_add_pd(right, r);
      }
      const unsigned kept =
          (keep<Lanes64, M, N>(Lanes64::key(_mm512_castpd_si512(left)), n) & 0xff) |
          keep<Lanes64, M, N>(Lanes64::key(_mm512_castpd_si512(right)), n) << 8;
      const __mmask16 mask = static_cast<__mmask16>(kept);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) x[v] = _mm512_maskz_compress_ps(mask, x[v]);
      const __m512 top = _mm512_insertf32x8(x[0], _mm512_castps512_ps256(x[1]), 1);
      const __m512 bottom = _mm512_insertf32x8(x[2], _mm512_castps512_ps256(x[3]), 1);
      const __m512 first = _mm512_permutex2var_ps(top, low, bottom);
      if (count < 4) {
        _mm512_mask_storeu_ps(values, static_cast<__mmask16>((1u << (4 * count)) - 1), first);
      } else {
        _mm512_storeu_ps(values, first);
      }
      if (count > 4) {
        const __m512 second = _mm512_permutex2var_ps(top, high, bottom);
        _mm512_mask_storeu_ps(values + 16, static_cast<__mmask16>((1u << (4 * count - 16)) - 1),
                              second);
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
  const __m512d factor = _mm512_set1_pd(static_cast<float>(alpha));
  for (std::int64_t i = 0; i < count; i += mask_columns) {
    const std::int64_t left = count - i;
    const __mmask16 part = static_cast<__mmask16>(left < mask_columns ? (1u << left) - 1 : 0xffff);
    __builtin_prefetch(reinterpret_cast<const char*>(y + i) + fetched_ahead, 1, 3);
    __builtin_prefetch(reinterpret_cast<const char*>(x + i) + fetched_ahead, 0, 3);
    const __m128i bytes = _mm_maskz_loadu_epi8(part, kept + i);
    const __m512 a = _mm512_maskz_loadu_ps(part, y + i), b = _mm512_maskz_loadu_ps(part, x + i);
    const __m256 low =
        _mm512_cvtpd_ps(_mm512_fmadd_pd(factor, _mm512_cvtps_pd(_mm512_castps512_ps256(b)),
                                        _mm512_cvtps_pd(_mm512_castps512_ps256(a))));
    const __m256 high =
        _mm512_cvtpd_ps(_mm512_fmadd_pd(factor, _mm512_cvtps_pd(_mm512_extractf32x8_ps(b, 1)),
                                        _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1))));
    const __m512 sum = _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
    _mm512_mask_storeu_ps(y + i, _mm_mask_testn_epi8_mask(part, bytes, bytes), sum);
  }
}

// Past the caches: what is not read first need not be fetched to be overwritten.
GOSSAMER_INLINE void stream(void* to, const void* from, std::int64_t bytes) noexcept {
  for (std::int64_t b = 0; b < bytes; b += 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(static_cast<char*>(to) + b),
                        _mm512_load_si512(static_cast<const char*>(from) + b));
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
