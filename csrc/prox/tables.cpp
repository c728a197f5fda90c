// Which prox table serves a call.
#include "kernels/dispatch.hpp"
#include "prox/table.hpp"

namespace gossamer {

const ProxTable& prox_table() {
  static constexpr PlainTables<ProxTable> tables = {
#if defined(GOSSAMER_HAVE_AVX512)
      &gossamer_prox_avx512,
#else
      nullptr,
#endif
#if defined(GOSSAMER_HAVE_AVX2)
      &gossamer_prox_avx2,
#else
      nullptr,
#endif
      &gossamer_prox_portable,
  };
  return tables.active();
}

}  // namespace gossamer
