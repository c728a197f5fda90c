#pragma once

#include "masks/tiles_table.hpp"

namespace gossamer {
namespace {

constexpr TilePasses tiles_passes = {};

}  // namespace
}  // namespace gossamer
