// Picking n of every m consecutive entries of a dense matrix: the part compiled for each
// instruction set.
#pragma once

#include "core/types.hpp"

namespace gossamer {

struct SelectPasses {};

}  // namespace gossamer
