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

// Tables that few topics have; plain loops, which the compiler turns into vectors, need none.
template <class Table>
struct FurtherTables {
  const Table* amx = nullptr;
  const Table* avx512bf16 = nullptr;
  const Table* avx512vnni = nullptr;
  const Table* neonbf16 = nullptr;
  const Table* neon = nullptr;
  const Table* emulated = nullptr;
  const Table* reference = nullptr;
};

template <class Table>
struct Tables {
  const Table* by_isa[isa_count];  // in the order of Isa; null: not in this build

  // The next one that there is; `emulated` and `reference` run the portable one where there is
  // none.
  const Table& active() const noexcept {
    constexpr int portable = static_cast<int>(Isa::portable);
    int isa = static_cast<int>(current_isa());
    while (isa < portable && by_isa[isa] == nullptr) ++isa;
    return by_isa[isa] != nullptr ? *by_isa[isa] : *by_isa[portable];
  }
};

template <class Table>
constexpr Tables<Table> make_tables(const Table* avx512, const Table* avx2, const Table* portable,
                                    FurtherTables<Table> further = {}) {
  return {{further.amx, further.avx512bf16, further.avx512vnni, avx512, avx2, further.neonbf16,
           further.neon, portable, further.emulated, further.reference}};
}

}  // namespace gossamer

// CMake says which tables a build has.
#if defined(GOSSAMER_HAVE_AVX512)
#define GOSSAMER_IF_AVX512(address) address
#else
#define GOSSAMER_IF_AVX512(address) nullptr
#endif
#if defined(GOSSAMER_HAVE_AMX)
#define GOSSAMER_IF_AMX(address) address
#else
#define GOSSAMER_IF_AMX(address) nullptr
#endif
#if defined(GOSSAMER_HAVE_AVX512BF16)
#define GOSSAMER_IF_AVX512BF16(address) address
#else
#define GOSSAMER_IF_AVX512BF16(address) nullptr
#endif
#if defined(GOSSAMER_HAVE_AVX512VNNI)
#define GOSSAMER_IF_AVX512VNNI(address) address
#else
#define GOSSAMER_IF_AVX512VNNI(address) nullptr
#endif
#if defined(GOSSAMER_HAVE_AVX2)
#define GOSSAMER_IF_AVX2(address) address
#else
#define GOSSAMER_IF_AVX2(address) nullptr
#endif
#if defined(GOSSAMER_HAVE_NEONBF16)
#define GOSSAMER_IF_NEONBF16(address) address
#else
#define GOSSAMER_IF_NEONBF16(address) nullptr
#endif
#if defined(GOSSAMER_HAVE_NEON)
#define GOSSAMER_IF_NEON(address) address
#else
#define GOSSAMER_IF_NEON(address) nullptr
#endif

// After the prefix may follow members of FurtherTables.
// --8<-- [start:tables]
#define GOSSAMER_TABLES(Table, tables, prefix, ...)                                              \
  extern "C" {                                                                                   \
  extern const Table prefix##_avx512;                                                            \
  extern const Table prefix##_avx2;                                                              \
  extern const Table prefix##_portable;                                                          \
  }                                                                                              \
  inline constexpr Tables<Table> tables =                                                        \
      make_tables<Table>(GOSSAMER_IF_AVX512(&prefix##_avx512), GOSSAMER_IF_AVX2(&prefix##_avx2), \
                         &prefix##_portable, {__VA_ARGS__})
// --8<-- [end:tables]
