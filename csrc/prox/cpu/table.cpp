// The prox kernels of one ISA, compiled once for each with that ISA's flags; one symbol.
#include "prox/table.hpp"

#include <utility>

#include "prox/cpu/adamw.hpp"
#include "prox/cpu/elements.hpp"
#include "prox/cpu/groups.hpp"

namespace gossamer {
namespace {

// A row per penalty, in the order of `enum class Penalty`; float32 and float64.
template <int... i>
constexpr ProxTable table_of(std::integer_sequence<int, i...>) noexcept {
  return {{{element_kernel<Penalty{i}, float>(), element_kernel<Penalty{i}, double>()}...},
          {{adamw_kernel<Penalty{i}, float>(), adamw_kernel<Penalty{i}, double>()}...},
          group_passes};
}

}  // namespace

extern "C" constexpr ProxTable GOSSAMER_TABLE =
    table_of(std::make_integer_sequence<int, penalty_count>{});

}  // namespace gossamer
