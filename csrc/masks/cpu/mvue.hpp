#pragma once

#include "masks/mvue_table.hpp"

namespace gossamer {
namespace {

constexpr MvuePasses mvue_passes = {};

}  // namespace
}  // namespace gossamer
