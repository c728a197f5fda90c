// What is compiled once an instruction set: loops that choose masks.
#pragma once

#include "masks/mvue_table.hpp"
#include "masks/select_table.hpp"
#include "masks/tiles_table.hpp"

namespace gossamer {

struct MasksTable {
  const char* name;
  SelectPasses select;
  TilePasses tiles;
  MvuePasses mvue;
};

extern "C" {
extern const MasksTable gossamer_masks_avx512;
extern const MasksTable gossamer_masks_avx2;
extern const MasksTable gossamer_masks_portable;
}

// The table of the instruction set in use.
const MasksTable& masks_table();

}  // namespace gossamer
