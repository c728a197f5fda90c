// Errors of the core. Each becomes the Python exception of the same name in bind/errors.cpp.
// A message says what was given, what is needed, and what to do.
#pragma once

#include <stdexcept>
#include <string>

namespace gossamer {

struct ShapeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct DTypeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct StructureError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class Error>
inline void require(bool condition, const std::string& message) {
  if (!condition) throw Error(message);
}

}  // namespace gossamer
