#include "products/dispatch.hpp"

namespace gossamer {
namespace {

// The chain of tables ends with the reference, which has no empty slot.
template <class GetSlot>
auto& find(GetSlot get, const char** name) noexcept {
  for (int isa = static_cast<int>(current_isa());; ++isa) {
    const ProductsTable* table = products_tables.by_isa[isa];
    if (table == nullptr) continue;
    auto& kernel = get(*table);
    if (kernel.run != nullptr || isa == isa_count - 1) {
      if (name != nullptr) *name = table->name;
      return kernel;
    }
  }
}

}  // namespace

const Kernel<SpmmArgs>& find_spmm(Slot s, const char** table) noexcept {
  return find(
      [&](const ProductsTable& t) -> auto& {
        return t.spmm[static_cast<int>(s.dtype)][s.vector_index];
      },
      table);
}
const Kernel<SpmmTArgs>& find_spmm_t(Slot s, const char** table) noexcept {
  return find(
      [&](const ProductsTable& t) -> auto& {
        return t.spmm_t[static_cast<int>(s.dtype)][s.vector_index];
      },
      table);
}
const SddmmKernel& find_sddmm(Slot s, const char** table) noexcept {
  return find(
      [&](const ProductsTable& t) -> auto& {
        return t.sddmm[static_cast<int>(s.dtype)][s.vector_index];
      },
      table);
}

}  // namespace gossamer
