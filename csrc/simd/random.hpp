// splitmix64 (Steele, Lea and Flood 2014): a counter-based generator. Number i of a key is a
// function of both, so any thread may draw it, in any order, and the bits are the same.
#pragma once

#include "core/types.hpp"

namespace gossamer {
namespace {

constexpr std::uint64_t random_step = 0x9e3779b97f4a7c15u;

// The finaliser alone: a bijection of 64 bits.
GOSSAMER_INLINE std::uint64_t random_mix(std::uint64_t z) noexcept {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

GOSSAMER_INLINE std::uint64_t random_at(std::uint64_t key, std::uint64_t i) noexcept {
  return random_mix(key + i * random_step);
}

// The key of a stream of its own, named by a key and a number.
GOSSAMER_INLINE std::uint64_t random_key(std::uint64_t key, std::uint64_t number) noexcept {
  return random_mix((key ^ number) + random_step);
}

}  // namespace
}  // namespace gossamer
