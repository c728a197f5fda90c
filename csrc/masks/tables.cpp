// Which masks table serves a call.
#include "kernels/dispatch.hpp"
#include "masks/table.hpp"

namespace gossamer {

const MasksTable& masks_table() {
  static constexpr PlainTables<MasksTable> tables = {
#if defined(GOSSAMER_HAVE_AVX512)
      &gossamer_masks_avx512,
#else
      nullptr,
#endif
#if defined(GOSSAMER_HAVE_AVX2)
      &gossamer_masks_avx2,
#else
      nullptr,
#endif
      &gossamer_masks_portable,
  };
  return tables.active();
}

}  // namespace gossamer
