#pragma once

#include "masks/select_table.hpp"

namespace gossamer {
namespace {

constexpr SelectPasses select_passes = {};

}  // namespace
}  // namespace gossamer
