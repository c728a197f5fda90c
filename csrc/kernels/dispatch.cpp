#include "kernels/dispatch.hpp"

#include <atomic>
#include <cstdlib>
#include <span>

#include "core/check.hpp"

namespace gossamer {
namespace {

struct Candidate {
  const KernelTable* table;
  bool (*runs)() noexcept;
};

bool always() noexcept { return true; }
#if defined(GOSSAMER_HAVE_AVX512)
bool has_avx512() noexcept {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
#if defined(GOSSAMER_HAVE_AVX2)
bool has_avx2() noexcept { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

// Priority order. `emulated` is slow on purpose and stands behind `portable`.
constexpr Candidate candidates[] = {
#if defined(GOSSAMER_HAVE_AVX512)
    {&gossamer_table_avx512, has_avx512},
#endif
#if defined(GOSSAMER_HAVE_AVX2)
    {&gossamer_table_avx2, has_avx2},
#endif
    {&gossamer_table_portable, always},   {&gossamer_table_emulated, always},
    {&gossamer_table_reference, always},
};
constexpr int candidate_count = static_cast<int>(std::size(candidates));

int best() noexcept {
  for (int i = 0; i < candidate_count; ++i) {
    if (candidates[i].runs()) return i;
  }
  return candidate_count - 1;
}

int by_name(const std::string& name) {
  std::string known;
  for (int i = 0; i < candidate_count; ++i) {
    if (!candidates[i].runs()) continue;
    if (name == candidates[i].table->name) return i;
    known += known.empty() ? "" : ", ";
    known += candidates[i].table->name;
  }
  throw ShapeError("ISA \"" + name + "\" was asked for; this build on this processor has " + known +
                   ": use one of them, or unset GOSSAMER_ISA");
}

std::atomic<int>& active() {
  static std::atomic<int> index = [] {
    const char* forced = std::getenv("GOSSAMER_ISA");
    return forced != nullptr && *forced != '\0' ? by_name(forced) : best();
  }();
  return index;
}

// The first table at or behind the active one that fills the slot.
template <class GetSlot>
auto& find(GetSlot get, const char** name) noexcept {
  for (int i = active().load(std::memory_order_relaxed);; ++i) {
    const KernelTable& table = *candidates[i].table;
    auto& kernel = get(table);
    if (kernel.run != nullptr || i == candidate_count - 1) {
      if (name != nullptr) *name = table.name;
      return kernel;
    }
  }
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Candidate& c : candidates) {
    if (c.runs()) names.emplace_back(c.table->name);
  }
  return names;
}

std::string active_isa() { return candidates[active().load()].table->name; }

void use_isa(const std::string& name) { active() = name.empty() ? best() : by_name(name); }

const Kernel<SpmmArgs>& find_spmm(Slot s, const char** table) noexcept {
  return find(
      [&](const KernelTable& t) -> auto& {
        return t.spmm[static_cast<int>(s.dtype)][s.vector_index];
      },
      table);
}
const Kernel<SpmmTArgs>& find_spmm_t(Slot s, const char** table) noexcept {
  return find(
      [&](const KernelTable& t) -> auto& {
        return t.spmm_t[static_cast<int>(s.dtype)][s.vector_index];
      },
      table);
}
const SddmmKernel& find_sddmm(Slot s, const char** table) noexcept {
  return find(
      [&](const KernelTable& t) -> auto& {
        return t.sddmm[static_cast<int>(s.dtype)][s.vector_index];
      },
      table);
}

}  // namespace gossamer
