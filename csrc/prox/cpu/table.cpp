// The prox kernels of one ISA, compiled once for each with that ISA's flags; one symbol.
#include "prox/table.hpp"
#include "prox/cpu/groups.hpp"

#if defined(GOSSAMER_ISA_AVX512)
#define GOSSAMER_TABLE gossamer_prox_avx512
#define GOSSAMER_TABLE_NAME "avx512"
#elif defined(GOSSAMER_ISA_AVX2)
#define GOSSAMER_TABLE gossamer_prox_avx2
#define GOSSAMER_TABLE_NAME "avx2"
#else
#define GOSSAMER_TABLE gossamer_prox_portable
#define GOSSAMER_TABLE_NAME "portable"
#endif

namespace gossamer {

extern "C" constexpr ProxTable GOSSAMER_TABLE = {
    GOSSAMER_TABLE_NAME,
    group_passes,
};

}  // namespace gossamer
