// Products of sparse codes with a dictionary. A latent is 2 to 4 KiB somewhere in memory: four are
// read side by side, and while they are, those that come eight places later are fetched.
#pragma once

#include "codes/table.hpp"

namespace gossamer {
namespace {

template <class T>
inline constexpr std::int64_t line = static_cast<std::int64_t>(64 / sizeof(T));

// Four rows of the dictionary, from entry `at` of a code on; beyond `last` the last one again.
template <class T>
struct Four {
  const T* row[4];

  Four(const Codes<T>& codes, std::int64_t at, std::int64_t last) noexcept {
    for (std::int64_t q = 0; q < 4; ++q) {
      const std::int64_t entry = at + q < last ? at + q : last - 1;
      row[q] = codes.dictionary + codes.ids[entry] * codes.d;
    }
  }

  GOSSAMER_INLINE void fetch(std::int64_t first, std::int64_t end) const noexcept {
    for (std::int64_t i = first; i < end; i += line<T>) {
      __builtin_prefetch(row[0] + i);
      __builtin_prefetch(row[1] + i);
      __builtin_prefetch(row[2] + i);
      __builtin_prefetch(row[3] + i);
    }
  }
};

constexpr std::int64_t ahead = 8;

// y[i] += c0 a[i] + c1 b[i] + c2 c[i] + c3 e[i], one after the other
template <class T>
GOSSAMER_INLINE void add_four(T* __restrict y, const T* const* rows, const T* z, std::int64_t first,
                              std::int64_t end) noexcept {
  const T *a = rows[0], *b = rows[1], *c = rows[2], *e = rows[3];
  const T c0 = z[0], c1 = z[1], c2 = z[2], c3 = z[3];
#pragma omp simd
  for (std::int64_t i = first; i < end; ++i) {
    y[i] = (((y[i] + c0 * a[i]) + c1 * b[i]) + c2 * c[i]) + c3 * e[i];
  }
}

template <class T>
GOSSAMER_INLINE void add_one(T* __restrict y, const T* a, T c0, std::int64_t d) noexcept {
#pragma omp simd
  for (std::int64_t i = 0; i < d; ++i) y[i] += c0 * a[i];
}

template <class T>
GOSSAMER_INLINE T dot_one(const T* x, const T* a, std::int64_t d) noexcept {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < d; ++i) sum += x[i] * a[i];
  return sum;
}

template <class T>
GOSSAMER_INLINE void fetch(const T* row, std::int64_t d) noexcept {
  for (std::int64_t i = 0; i < d; i += line<T>) __builtin_prefetch(row + i);
}

template <class T>
void decode(const Codes<T>& codes, const T* bias, std::int64_t first, std::int64_t last,
            T* out) noexcept {
  constexpr std::int64_t chunk = 4 * line<T>;
  const std::int64_t k = codes.k, d = codes.d, entries = last * k;
  for (std::int64_t b = first; b < last; ++b) {
    T* __restrict y = out + b * d;
    for (std::int64_t i = 0; i < d; ++i) y[i] = bias != nullptr ? bias[i] : T{0};
    std::int64_t at = b * k;
    const std::int64_t end = at + k;
    for (; at + 4 <= end; at += 4) {
      const Four<T> rows(codes, at, entries), next(codes, at + ahead, entries);
      std::int64_t i = 0;
      for (; i + chunk <= d; i += chunk) {
        next.fetch(i, i + chunk);
        add_four(y, rows.row, codes.values + at, i, i + chunk);
      }
      add_four(y, rows.row, codes.values + at, i, d);
    }
    for (; at < end; ++at) add_one(y, codes.dictionary + codes.ids[at] * d, codes.values[at], d);
  }
}

template <class T>
void dots(const Codes<T>& codes, const T* g, std::int64_t first, std::int64_t last,
          T* out) noexcept {
  // Longer than decode's: at the end of a chunk the lanes of a sum are added up.
  constexpr std::int64_t chunk = 24 * line<T>;
  const std::int64_t k = codes.k, d = codes.d, entries = last * k;
  for (std::int64_t b = first; b < last; ++b) {
    const T* x = g + b * d;
    std::int64_t at = b * k;
    const std::int64_t end = at + k;
    for (; at + 4 <= end; at += 4) {
      const Four<T> rows(codes, at, entries), next(codes, at + ahead, entries);
      const T *r0 = rows.row[0], *r1 = rows.row[1], *r2 = rows.row[2], *r3 = rows.row[3];
      T s0 = 0, s1 = 0, s2 = 0, s3 = 0;
      for (std::int64_t from = 0; from < d; from += chunk) {
        const std::int64_t to = from + chunk < d ? from + chunk : d;
        next.fetch(from, to);
#pragma omp simd reduction(+ : s0, s1, s2, s3)
        for (std::int64_t i = from; i < to; ++i) {
          s0 += x[i] * r0[i];
          s1 += x[i] * r1[i];
          s2 += x[i] * r2[i];
          s3 += x[i] * r3[i];
        }
      }
      out[at] = s0;
      out[at + 1] = s1;
      out[at + 2] = s2;
      out[at + 3] = s3;
    }
    for (; at < end; ++at) out[at] = dot_one(x, codes.dictionary + codes.ids[at] * d, d);
  }
}

template <class T>
void scatter(const Buckets<T>& buckets, std::int64_t first, std::int64_t last, T* out) noexcept {
  const std::int64_t d = buckets.d;
  const std::int32_t* source = buckets.source;
  const T* values = buckets.values;
  const T* vectors = buckets.vectors;
  for (std::int64_t r = first; r < last; ++r) {
    T* __restrict y = out + buckets.latent[r] * d;
    std::int64_t e = buckets.start[r];
    const std::int64_t end = buckets.start[r + 1];
    if (!buckets.add) {
      const T* a = vectors + source[e] * d;
      const T c = values[e];
      // + 0 so that no -0.0 is written.
      for (std::int64_t i = 0; i < d; ++i) y[i] = c * a[i] + T{0};
      ++e;
    }
    for (; e + 4 <= end; e += 4) {
      const T* const rows[4] = {vectors + source[e] * d, vectors + source[e + 1] * d,
                                vectors + source[e + 2] * d, vectors + source[e + 3] * d};
      add_four(y, rows, values + e, 0, d);
    }
    for (; e < end; ++e) add_one(y, vectors + source[e] * d, values[e], d);
  }
}

template <class T>
void prefix_errors(const Codes<T>& codes, std::int64_t first, std::int64_t last, T* residual,
                   T* errors) noexcept {
  const std::int64_t k = codes.k, d = codes.d;
  for (std::int64_t b = first; b < last; ++b) {
    const std::int32_t* ids = codes.ids + b * k;
    T* __restrict r = residual + b * d;
    for (std::int64_t j = 0; j < k; ++j) {
      if (j + 2 < k) fetch(codes.dictionary + ids[j + 2] * d, d);
      const T* a = codes.dictionary + ids[j] * d;
      const T z = codes.values[b * k + j];
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t i = 0; i < d; ++i) {
        const T left = r[i] - z * a[i];
        r[i] = left;
        sum += left * left;
      }
      errors[b * k + j] = sum;
    }
  }
}

template <class T>
void suffix_sums(const Codes<T>& codes, const T* weights, std::int64_t first, std::int64_t last,
                 T* residual, T* suffixes, T* grad_values) noexcept {
  const std::int64_t k = codes.k, d = codes.d;
  for (std::int64_t b = first; b < last; ++b) {
    const std::int32_t* ids = codes.ids + b * k;
    T* __restrict r = residual + b * d;
    for (std::int64_t j = k - 1; j >= 0; --j) {
      if (j >= 2) fetch(codes.dictionary + ids[j - 2] * d, d);
      const T* a = codes.dictionary + ids[j] * d;
      const T z = codes.values[b * k + j];
      const T c = T{-2} * weights[b * k + j];
      T* __restrict s = suffixes + ((b - first) * k + j) * d;
      T sum = 0;
      if (j == k - 1) {
#pragma omp simd reduction(+ : sum)
        for (std::int64_t i = 0; i < d; ++i) {
          const T now = c * r[i] + T{0};
          s[i] = now;
          sum += now * a[i];
          r[i] += z * a[i];
        }
      } else {
        const T* above = s + d;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t i = 0; i < d; ++i) {
          const T now = above[i] + c * r[i];
          s[i] = now;
          sum += now * a[i];
          r[i] += z * a[i];
        }
      }
      grad_values[b * k + j] = sum;
    }
    const T* all = suffixes + (b - first) * k * d;
    for (std::int64_t i = 0; i < d; ++i) r[i] = all[i];
  }
}

}  // namespace
}  // namespace gossamer
