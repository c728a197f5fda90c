// Lists of kept columns as kernels of a device read them.
//
// A device does not check a structure at each call: that would be a wait. So every list is cut to
// what the arrays hold, and whatever bytes they are, no kernel leaves them.
#pragma once

#include "gpu/words.cuh"
#include "layouts/panels.hpp"

namespace gossamer::gpu {

// The list that `panels` panels share, the first of them given: its entries in each are `count`.
GOSSAMER_WORD Panels::Entries list_of(const Panels& w, std::int64_t block, std::int64_t panel,
                                      int panels) {
  const Panels::Lists lists = w.lists();
  Panels::Entries found{};
  if (lists.indptr == nullptr) {
    found = lists.of(block, panel);
  } else {  // in 64 bits, where no two pointers are too far apart
    const std::int32_t* at = lists.indptr + block * lists.panels + lists.first_panel + panel;
    found.begin = at[0];
    found.count = at[1] - found.begin;
  }
  const std::int64_t left = w.entry_count - found.begin;
  if (found.begin < 0 || left < 0) return {0, 0};
  if (found.count > left / panels) found.count = left / panels;
  if (found.count > Panels::max_block_cols) found.count = Panels::max_block_cols;
  if (found.count < 0) found.count = 0;
  return found;
}

}  // namespace gossamer::gpu
