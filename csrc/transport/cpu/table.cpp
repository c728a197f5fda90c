// The transport passes of one ISA, compiled once for each with that ISA's flags; one symbol.
#include "transport/cpu/passes.hpp"
#include "transport/cpu/small.hpp"

namespace gossamer {

extern "C" constexpr TransportTable GOSSAMER_TABLE = {
    {sweep<Cost>, sums<Cost>, emit<Cost>},
    {sweep<SparseCost>, sums<SparseCost>, emit<SparseCost>},
    kernel_sweep,
    write_plan,
    small_passes<float>,
    small_passes<double>,
};

}  // namespace gossamer
