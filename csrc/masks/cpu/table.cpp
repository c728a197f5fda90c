// The masks kernels of one ISA, compiled once for each with that ISA's flags; one symbol.
#include "masks/table.hpp"

#include "masks/cpu/mvue.hpp"
#include "masks/cpu/select.hpp"
#include "masks/cpu/tiles.hpp"

namespace gossamer {

extern "C" constexpr MasksTable GOSSAMER_TABLE = {
    select_passes,
    tiles_passes,
    mvue_passes,
};

}  // namespace gossamer
