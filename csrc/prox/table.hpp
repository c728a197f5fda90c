// What is compiled once an instruction set: proximal operators on elements, and on groups.
#pragma once

#include "prox/groups_table.hpp"

namespace gossamer {

struct ProxTable {
  const char* name;
  GroupPasses groups;
};

extern "C" {
extern const ProxTable gossamer_prox_avx512;
extern const ProxTable gossamer_prox_avx2;
extern const ProxTable gossamer_prox_portable;
}

// The table of the instruction set in use.
const ProxTable& prox_table();

}  // namespace gossamer
