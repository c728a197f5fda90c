// The kernels of sparse activations of one ISA, compiled once for each with that ISA's flags; one
// symbol.
#include "activations/table.hpp"

#include "activations/cpu/few.hpp"
#include "activations/cpu/gate.hpp"
#include "activations/cpu/pairs.hpp"

namespace gossamer {

extern "C" constexpr ActivationsTable GOSSAMER_TABLE = {pair_table<float>, pair_table<double>,
                                                        pair_table<bf16>, gate_table, few_table};

}  // namespace gossamer
