// Unbiased N:M samples of a matrix: the part compiled for each instruction set.
#pragma once

#include "core/types.hpp"

namespace gossamer {

struct MvuePasses {};

}  // namespace gossamer
