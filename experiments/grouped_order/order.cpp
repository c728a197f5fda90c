// Prototypes of products that use the order of an n:m:g weight, against which panels are measured.
//
// W [rows, cols] keeps 2 of every 4 columns of a row, and in a chunk of 6 g rows each of the six
// choices occurs g times in every group of columns. x and y are packed as the engine packs them: a
// tile of 64 batch rows, batch innermost, so what packing costs is left out here.
//
//   forward    y += W x     a choice has two columns: their x stays in registers for g rows, whose
//                           sums come from the first-level cache and go back
//   transposed dx += W^T dy the sums of a group's four columns stay in registers for the whole
//                           chunk, and one load of dy serves both entries of a row
//
// Ivanov et al. 2023, "STen: Productive and Efficient Sparsity in PyTorch" (the second form).
#include <cstdint>

namespace {

using Lanes = float __attribute__((vector_size(64)));
constexpr int lanes = 16, vectors = 4, tile = lanes * vectors;
constexpr int first[6] = {0, 0, 1, 0, 1, 2}, second[6] = {1, 2, 2, 3, 3, 3};

inline Lanes load(const float* p) { return *reinterpret_cast<const Lanes*>(p); }
inline void store(float* p, Lanes v) { *reinterpret_cast<Lanes*>(p) = v; }
inline Lanes set(float v) { return Lanes{} + v; }

template <int A, int B>
inline void rows_of_choice(const float* dy, const float* values, const std::uint16_t* rows,
                           std::int64_t g, Lanes (&sums)[4][vectors]) {
  for (std::int64_t i = 0; i < g; ++i) {
    const float* from = dy + rows[i] * std::int64_t{tile};
    const Lanes a = set(values[2 * i]), b = set(values[2 * i + 1]);
    for (int k = 0; k < vectors; ++k) {
      const Lanes v = load(from + k * lanes);
      sums[A][k] += a * v;
      sums[B][k] += b * v;
    }
  }
}

}  // namespace

// values [chunks, groups, 6, g, 2], places [chunks, groups, 6, g]: the row inside the chunk.
extern "C" void forward_ordered(const float* x, const float* values, const std::uint16_t* places,
                                float* y, std::int64_t chunks, std::int64_t groups,
                                std::int64_t g) {
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    float* sums = y + chunk * 6 * g * tile;
    for (std::int64_t i = 0; i < 6 * g * tile; i += lanes) store(sums + i, Lanes{});
    for (std::int64_t group = 0; group < groups; ++group) {
      for (int choice = 0; choice < 6; ++choice, values += 2 * g, places += g) {
        Lanes a[vectors], b[vectors];
        for (int k = 0; k < vectors; ++k) {
          a[k] = load(x + (4 * group + first[choice]) * tile + k * lanes);
          b[k] = load(x + (4 * group + second[choice]) * tile + k * lanes);
        }
        for (std::int64_t i = 0; i < g; ++i) {
          float* out = sums + places[i] * std::int64_t{tile};
          const Lanes u = set(values[2 * i]), v = set(values[2 * i + 1]);
          for (int k = 0; k < vectors; ++k) {
            store(out + k * lanes, load(out + k * lanes) + u * a[k] + v * b[k]);
          }
        }
      }
    }
  }
}

extern "C" void transposed_ordered(const float* dy, const float* values,
                                   const std::uint16_t* places, float* dx, std::int64_t chunks,
                                   std::int64_t groups, std::int64_t g) {
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const float* from = dy + chunk * 6 * g * tile;
    for (std::int64_t group = 0; group < groups; ++group) {
      Lanes sums[4][vectors];
      float* out = dx + 4 * group * tile;
      for (int c = 0; c < 4; ++c) {
        for (int k = 0; k < vectors; ++k) {
          sums[c][k] = chunk ? load(out + c * tile + k * lanes) : Lanes{};
        }
      }
      rows_of_choice<0, 1>(from, values, places, g, sums);
      rows_of_choice<0, 2>(from, values + 2 * g, places + g, g, sums);
      rows_of_choice<1, 2>(from, values + 4 * g, places + 2 * g, g, sums);
      rows_of_choice<0, 3>(from, values + 6 * g, places + 3 * g, g, sums);
      rows_of_choice<1, 3>(from, values + 8 * g, places + 4 * g, g, sums);
      rows_of_choice<2, 3>(from, values + 10 * g, places + 5 * g, g, sums);
      values += 12 * g;
      places += 6 * g;
      for (int c = 0; c < 4; ++c) {
        for (int k = 0; k < vectors; ++k) store(out + c * tile + k * lanes, sums[c][k]);
      }
    }
  }
}
