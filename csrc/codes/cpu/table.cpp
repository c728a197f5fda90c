// The codes kernels of one ISA, compiled once for each with that ISA's flags; one symbol.
#include "codes/table.hpp"

#if defined(GOSSAMER_ISA_AVX512)
#define GOSSAMER_TABLE gossamer_codes_avx512
#define GOSSAMER_TABLE_NAME "avx512"
#elif defined(GOSSAMER_ISA_AVX2)
#define GOSSAMER_TABLE gossamer_codes_avx2
#define GOSSAMER_TABLE_NAME "avx2"
#else
#define GOSSAMER_TABLE gossamer_codes_portable
#define GOSSAMER_TABLE_NAME "portable"
#endif

namespace gossamer {

extern "C" constexpr CodesTable GOSSAMER_TABLE = {
    GOSSAMER_TABLE_NAME,
};

}  // namespace gossamer
