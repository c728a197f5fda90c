#include "core/isa.hpp"

#if defined(GOSSAMER_HAVE_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(GOSSAMER_HAVE_NEONBF16)
#include <sys/auxv.h>
#endif

#include <atomic>
#include <cstdlib>

#include "core/check.hpp"

namespace gossamer {
namespace {

struct Candidate {
  const char* name;
  bool (*runs)() noexcept;
};

bool always() noexcept { return true; }
#if defined(GOSSAMER_HAVE_AVX512)
bool has_avx512() noexcept {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
bool has_avx512() noexcept { return false; }
#endif
#if defined(GOSSAMER_HAVE_AVX512VNNI)
bool has_avx512vnni() noexcept { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
#else
bool has_avx512vnni() noexcept { return false; }
#endif
#if defined(GOSSAMER_HAVE_AVX512BF16)
bool has_avx512bf16() noexcept {
  return has_avx512vnni() && __builtin_cpu_supports("avx512bf16");  // no processor has it alone
}
#else
bool has_avx512bf16() noexcept { return false; }
#endif
#if defined(GOSSAMER_HAVE_AMX)
// The tiles are 8 KB more that Linux must save of each thread, so that it wants to be asked once a
// process; it refuses, for example, where a thread's stack for signals is too small for them.
bool may_use_tiles() noexcept {
  constexpr long req_xcomp_perm = 0x1023, xtiledata = 18;  // Linux, Documentation/arch/x86/xstate
  static const bool permitted = syscall(SYS_arch_prctl, req_xcomp_perm, xtiledata) == 0;
  return permitted;
}
// The compiler's functions ask the processor (CPUID) and whether the system saves tiles (XCR0).
bool has_amx() noexcept {
  return has_avx512bf16() && __builtin_cpu_supports("amx-tile") &&
         __builtin_cpu_supports("amx-bf16") && may_use_tiles();
}
#else
bool has_amx() noexcept { return false; }
#endif
// --8<-- [start:detection]
#if defined(GOSSAMER_HAVE_AVX2)
bool has_avx2() noexcept { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#else
bool has_avx2() noexcept { return false; }
#endif
// --8<-- [end:detection]
#if defined(GOSSAMER_HAVE_NEON)
bool has_neon() noexcept { return true; }  // every 64-bit ARM processor has it
#else
bool has_neon() noexcept { return false; }
#endif
#if defined(GOSSAMER_HAVE_NEONBF16)
bool has_neonbf16() noexcept {
  constexpr unsigned long hwcap2_bf16 = 1UL << 14;  // Linux, Documentation/arch/arm64/elf_hwcaps
  return (getauxval(AT_HWCAP2) & hwcap2_bf16) != 0;
}
#else
bool has_neonbf16() noexcept { return false; }
#endif

// In the order of `enum class Isa`.
// --8<-- [start:candidates]
constexpr Candidate candidates[isa_count] = {
    {"amx", has_amx},
    {"avx512bf16", has_avx512bf16},
    {"avx512vnni", has_avx512vnni},
    {"avx512", has_avx512},
    {"avx2", has_avx2},
    {"neonbf16", has_neonbf16},
    {"neon", has_neon},
    {"portable", always},
    {"emulated", always},
    {"reference", always},
};
// --8<-- [end:candidates]

Isa best() noexcept {
  int isa = 0;
  while (!candidates[isa].runs()) ++isa;
  return static_cast<Isa>(isa);
}

Isa by_name(const std::string& name) {
  std::string known;
  for (int isa = 0; isa < isa_count; ++isa) {
    if (!candidates[isa].runs()) continue;
    if (name == candidates[isa].name) return static_cast<Isa>(isa);
    known += known.empty() ? "" : ", ";
    known += candidates[isa].name;
  }
  throw ArgumentError("ISA \"" + name + "\" was asked for; this build on this processor has " +
                      known + ": use one of them, or unset GOSSAMER_ISA");
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa = [] {
    const char* forced = std::getenv("GOSSAMER_ISA");
    return forced != nullptr && *forced != '\0' ? by_name(forced) : best();
  }();
  return isa;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Candidate& candidate : candidates) {
    if (candidate.runs()) names.emplace_back(candidate.name);
  }
  return names;
}

Isa current_isa() noexcept { return chosen().load(std::memory_order_relaxed); }

const char* name_of(Isa isa) noexcept { return candidates[static_cast<int>(isa)].name; }

void use_isa(const std::string& name) { chosen() = name.empty() ? best() : by_name(name); }

void choose_isa() { chosen(); }

}  // namespace gossamer
