// The masks kernels of one ISA, compiled once for each with that ISA's flags; one symbol.
#include "masks/table.hpp"

#include "masks/cpu/mvue.hpp"
#include "masks/cpu/select.hpp"
#include "masks/cpu/tiles.hpp"

#if defined(GOSSAMER_ISA_AVX512)
#define GOSSAMER_TABLE gossamer_masks_avx512
#define GOSSAMER_TABLE_NAME "avx512"
#elif defined(GOSSAMER_ISA_AVX2)
#define GOSSAMER_TABLE gossamer_masks_avx2
#define GOSSAMER_TABLE_NAME "avx2"
#else
#define GOSSAMER_TABLE gossamer_masks_portable
#define GOSSAMER_TABLE_NAME "portable"
#endif

namespace gossamer {

extern "C" constexpr MasksTable GOSSAMER_TABLE = {
    GOSSAMER_TABLE_NAME,
    select_passes,
    tiles_passes,
    mvue_passes,
};

}  // namespace gossamer
