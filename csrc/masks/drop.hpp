// The kept entries of a weight that are dropped: those of the smallest magnitude.
#pragma once

#include "layouts/panels.hpp"

namespace gossamer {

// stays [entries]: 0 for the `count` entries of the smallest magnitude, 1 for all others. The
// magnitude of an entry is the sum over its V values, in double; NaN is larger than infinity. Of
// equal ones the later is dropped, in the order of panels and then columns. 0 <= count <= entries.
// A radix selection: nothing is sorted. Throws std::bad_alloc.
void drop(const Panels& w, DType dtype, const void* values, std::int64_t count,
          std::uint8_t* stays);

}  // namespace gossamer
