// Runs of panels: rows beyond a panel that share their columns, as wide vectors and blocks have.
// They are found by comparing the lists, at every call, so that no kernel has to trust an earlier
// look: a byte per list entry, where the values are sixteen bytes of bf16.
#pragma once

#include <cstddef>

#include "layouts/panels.hpp"

namespace gossamer {

// The most panels, of 16, 8, 4 and 2, of which each aligned run has equal lists of at most 256
// entries per block, or 1. `found` [blocks] is overwritten.
std::int64_t find_run(const Panels& layout, std::int64_t* found, int workers) noexcept;

// Fills in Prepared::starts, [layout.runs() + 1].
void list_starts(const Panels& layout, std::int64_t* starts) noexcept;

}  // namespace gossamer
