// Passes over groups: plain loops that the compiler turns into vectors.
#pragma once

#include "prox/groups_table.hpp"

namespace gossamer {
namespace {

constexpr GroupPasses group_passes = {};

}  // namespace
}  // namespace gossamer
