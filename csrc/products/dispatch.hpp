// Which kernel serves a verb: the first one at or after the table in use that fills the slot.
#pragma once

#include "products/table.hpp"

namespace gossamer {

struct Slot {
  DType dtype;
  int vector_index;
};

// `table` receives the name of the table that holds the kernel.
const Kernel<SpmmArgs>& find_spmm(Slot slot, const char** table = nullptr) noexcept;
const Kernel<SpmmTArgs>& find_spmm_t(Slot slot, const char** table = nullptr) noexcept;
const SddmmKernel& find_sddmm(Slot slot, const char** table = nullptr) noexcept;

}  // namespace gossamer
