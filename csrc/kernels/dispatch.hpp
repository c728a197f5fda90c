// Which table serves a call: tables in priority order, an override, and the chain of fallbacks.
#pragma once

#include <string>
#include <vector>

#include "kernels/table.hpp"

namespace gossamer {

// Tables that this processor can run, best first. The emulated one is last but the reference: it
// serves only when asked for by name.
std::vector<std::string> available_isas();

// The table in use: the best one, or the one that use_isa or GOSSAMER_ISA named.
std::string active_isa();

// Forces a table by name; an empty name gives the choice back. Throws std::invalid_argument-like
// ShapeError naming the available ones.
void use_isa(const std::string& name);

// Topics in plain C++, which the compiler turns into vectors, have three tables each instead of the
// five here: emulated and reference run the portable one. A table that is not built is null.
template <class Table>
struct PlainTables {
  const Table* avx512;
  const Table* avx2;
  const Table* portable;
  const Table& active() const {
    const std::string isa = active_isa();
    if (isa == "avx512" && avx512 != nullptr) return *avx512;
    if (isa == "avx2" && avx2 != nullptr) return *avx2;
    return *portable;
  }
};

// The kernel for a slot, and the name of the table it stands in.
struct Slot {
  DType dtype;
  int vector_index;
};
const Kernel<SpmmArgs>& find_spmm(Slot slot, const char** table = nullptr) noexcept;
const Kernel<SpmmTArgs>& find_spmm_t(Slot slot, const char** table = nullptr) noexcept;
const SddmmKernel& find_sddmm(Slot slot, const char** table = nullptr) noexcept;

// Index of V in `vectors`, or -1.
constexpr int vector_index(std::int64_t vector) noexcept {
  for (int i = 0; i < vector_count; ++i) {
    if (vectors[i] == vector) return i;
  }
  return -1;
}

}  // namespace gossamer
