// Where a call runs: a device and a stream on it, as its library numbers them. The CPU ignores it.
#pragma once

namespace gossamer {

struct Queue {
  int device = -1;
  void* stream = nullptr;
};

}  // namespace gossamer
