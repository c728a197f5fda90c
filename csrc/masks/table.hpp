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

GOSSAMER_TABLES(MasksTable, masks_tables, gossamer_masks);

}  // namespace gossamer
