// Passes over groups of entries and over group norms, compiled once an instruction set.
#pragma once

#include "core/types.hpp"

namespace gossamer {

struct GroupPasses {};

}  // namespace gossamer
