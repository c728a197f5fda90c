// Masks of square tiles that are N:M along rows and columns: the part compiled for each instruction
// set.
#pragma once

#include "core/types.hpp"

namespace gossamer {

struct TilePasses {};

}  // namespace gossamer
