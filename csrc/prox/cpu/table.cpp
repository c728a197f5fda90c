// The prox kernels of one ISA, compiled once for each with that ISA's flags; one symbol.
#include "prox/table.hpp"
#include "prox/cpu/adamw.hpp"
#include "prox/cpu/elements.hpp"
#include "prox/cpu/groups.hpp"

namespace gossamer {

// --8<-- [start:rows]
extern "C" constexpr ProxTable GOSSAMER_TABLE = {
    {{run_pieces<Penalty::l1, float>, run_pieces<Penalty::l1, double>},
     {run_pieces<Penalty::elastic_net, float>, run_pieces<Penalty::elastic_net, double>},
     {run_pieces<Penalty::l0, float>, run_pieces<Penalty::l0, double>},
     {run_lp<float>, run_lp<double>},
     {run_pieces<Penalty::mcp, float>, run_pieces<Penalty::mcp, double>},
     {run_pieces<Penalty::scad, float>, run_pieces<Penalty::scad, double>},
     {run_pieces<Penalty::capped_l1, float>, run_pieces<Penalty::capped_l1, double>},
     {run_transformed_l1<float>, run_transformed_l1<double>},
     {run_log_sum<float>, run_log_sum<double>}},
    {{run_adamw_pieces<Penalty::l1, float>, run_adamw_pieces<Penalty::l1, double>},
     {run_adamw_pieces<Penalty::elastic_net, float>,
      run_adamw_pieces<Penalty::elastic_net, double>},
     {run_adamw_pieces<Penalty::l0, float>, run_adamw_pieces<Penalty::l0, double>},
     {run_adamw<float, run_lp<float>>, run_adamw<double, run_lp<double>>},
     {run_adamw_pieces<Penalty::mcp, float>, run_adamw_pieces<Penalty::mcp, double>},
     {run_adamw_pieces<Penalty::scad, float>, run_adamw_pieces<Penalty::scad, double>},
     {run_adamw_pieces<Penalty::capped_l1, float>, run_adamw_pieces<Penalty::capped_l1, double>},
     {run_adamw<float, run_transformed_l1<float>>, run_adamw<double, run_transformed_l1<double>>},
     {run_adamw<float, run_log_sum<float>>, run_adamw<double, run_log_sum<double>>}},
    group_passes,
};
// --8<-- [end:rows]

}  // namespace gossamer
