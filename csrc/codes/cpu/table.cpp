// The codes kernels of one ISA, compiled once for each with that ISA's flags; one symbol.
#include "codes/table.hpp"

#include "codes/cpu/decode.hpp"
#include "codes/cpu/select.hpp"

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
    {group_max<float>, pick<float>, decode<float>, dots<float>, scatter<float>,
     prefix_errors<float>, suffix_sums<float>},
    {group_max<double>, pick<double>, decode<double>, dots<double>, scatter<double>,
     prefix_errors<double>, suffix_sums<double>},
};

}  // namespace gossamer
