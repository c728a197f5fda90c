// Which instruction set (ISA) serves. Every topic has its loops compiled once for each ISA; what
// this file chooses holds for all of them.
#pragma once

#include <string>
#include <vector>

namespace gossamer {

// Best first. `amx` has the products of bf16 in runs of panels alone, `avx512bf16` and `neonbf16`
// those of bf16, `avx512vnni` the sparse activations; they leave the rest to the next one. `neon`
// has the products alone: on ARM the compiler makes NEON of the plain loops of `portable`.
// `emulated` and `reference` run everywhere and serve only when asked for by name: `emulated` has
// the shape of AVX-512 in plain C++, `reference` is every formula once.
// --8<-- [start:isas]
enum class Isa : int {
  amx,
  avx512bf16,
  avx512vnni,
  avx512,
  avx2,
  neonbf16,
  neon,
  portable,
  emulated,
  reference
};
inline constexpr int isa_count = 10;
// --8<-- [end:isas]

// Those that this build has tables for and this processor can run, best first.
std::vector<std::string> available_isas();

// The one in use: the best one, or the one that use_isa or GOSSAMER_ISA named.
Isa current_isa() noexcept;
const char* name_of(Isa isa) noexcept;

// Forces an ISA by name; an empty name gives the choice back. Throws ArgumentError that names the
// available ones.
void use_isa(const std::string& name);

// Reads GOSSAMER_ISA, if nobody did yet. Throws as use_isa does.
void choose_isa();

}  // namespace gossamer
