// The tables of a topic, one per instruction set (ISA), and which of them serves.
//
// A topic's loops are compiled once for each ISA, from one source, csrc/TOPIC/cpu/table.cpp. Each
// object exports one symbol, a struct of function pointers named gossamer_TOPIC_ISA. The line
//
//   GOSSAMER_TABLES(ProxTable, prox_tables, gossamer_prox);
//
// declares these symbols and the constant `prox_tables`, which holds their addresses;
// `prox_tables.active()` is the table in use.
#pragma once

#include "core/isa.hpp"

namespace gossamer {

template <class Table>
struct Tables {
  const Table* by_isa[isa_count];  // null: not in this build

  // Topics in plain C++, which the compiler turns into vectors, have no table of their own for
  // `emulated` and `reference`: those run the portable one.
  const Table& active() const noexcept {
    const Table* table = by_isa[static_cast<int>(current_isa())];
    return table != nullptr ? *table : *by_isa[static_cast<int>(Isa::portable)];
  }
};

}  // namespace gossamer

// CMake says which tables a build has.
#if defined(GOSSAMER_HAVE_AVX512)
#define GOSSAMER_IF_AVX512(address) address
#else
#define GOSSAMER_IF_AVX512(address) nullptr
#endif
#if defined(GOSSAMER_HAVE_AVX2)
#define GOSSAMER_IF_AVX2(address) address
#else
#define GOSSAMER_IF_AVX2(address) nullptr
#endif

// After the prefix may follow the addresses of an emulated and of a reference table.
// --8<-- [start:tables]
#define GOSSAMER_TABLES(Table, tables, prefix, ...)                               \
  extern "C" {                                                                    \
  extern const Table prefix##_avx512;                                             \
  extern const Table prefix##_avx2;                                               \
  extern const Table prefix##_portable;                                           \
  }                                                                               \
  inline constexpr Tables<Table> tables = {{GOSSAMER_IF_AVX512(&prefix##_avx512), \
                                            GOSSAMER_IF_AVX2(&prefix##_avx2),     \
                                            &prefix##_portable __VA_OPT__(, ) __VA_ARGS__}}
// --8<-- [end:tables]
