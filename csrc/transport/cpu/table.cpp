// The transport passes of one ISA, compiled once for each with that ISA's flags; one symbol.
#include "transport/cpu/passes.hpp"

#if defined(GOSSAMER_ISA_AVX512)
#define GOSSAMER_TABLE gossamer_transport_avx512
#define GOSSAMER_TABLE_NAME "avx512"
#elif defined(GOSSAMER_ISA_AVX2)
#define GOSSAMER_TABLE gossamer_transport_avx2
#define GOSSAMER_TABLE_NAME "avx2"
#else
#define GOSSAMER_TABLE gossamer_transport_portable
#define GOSSAMER_TABLE_NAME "portable"
#endif

namespace gossamer {

extern "C" constexpr TransportTable GOSSAMER_TABLE = {
    GOSSAMER_TABLE_NAME,
    {sweep<Cost>, sums<Cost>, emit<Cost>},
    {sweep<SparseCost>, sums<SparseCost>, emit<SparseCost>},
    kernel_sweep,
    write_plan,
};

}  // namespace gossamer
