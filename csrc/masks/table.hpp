// What is compiled once an instruction set: loops that choose masks.
#pragma once

#include "core/tables.hpp"
#include "masks/mvue_table.hpp"
#include "masks/select_table.hpp"
#include "masks/tiles_table.hpp"

namespace gossamer {

struct MasksTable {
  SelectPasses select;
  TilePasses tiles;
  MvuePasses mvue;
};

// The selections have loops in words of their own (masks/cpu/select_registers.hpp).
extern "C" {
extern const MasksTable gossamer_masks_emulated;
}
GOSSAMER_TABLES(MasksTable, masks_tables, gossamer_masks, .emulated = &gossamer_masks_emulated);

}  // namespace gossamer
