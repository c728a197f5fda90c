// The codes kernels of one ISA, compiled once for each with that ISA's flags; one symbol.
#include "codes/table.hpp"

#include "codes/cpu/decode.hpp"
#include "codes/cpu/select.hpp"

namespace gossamer {

extern "C" constexpr CodesTable GOSSAMER_TABLE = {
    {group_max<float>, pick<float>, decode<float>, dots<float>, scatter<float>,
     prefix_errors<float>, suffix_sums<float>},
    {group_max<double>, pick<double>, decode<double>, dots<double>, scatter<double>,
     prefix_errors<double>, suffix_sums<double>},
};

}  // namespace gossamer
