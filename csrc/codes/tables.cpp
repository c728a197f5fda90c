// Which codes table serves a call.
#include "codes/table.hpp"
#include "kernels/dispatch.hpp"

namespace gossamer {

const CodesTable& codes_table() {
  static constexpr PlainTables<CodesTable> tables = {
#if defined(GOSSAMER_HAVE_AVX512)
      &gossamer_codes_avx512,
#else
      nullptr,
#endif
#if defined(GOSSAMER_HAVE_AVX2)
      &gossamer_codes_avx2,
#else
      nullptr,
#endif
      &gossamer_codes_portable,
  };
  return tables.active();
}

}  // namespace gossamer
