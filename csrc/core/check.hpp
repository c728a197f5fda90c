// Errors of the core. Each becomes the Python exception of the same name in bind/errors.cpp.
// A message says what was given, what is needed, and what to do.
#pragma once

#include <stdexcept>
#include <string>

namespace gossamer {

// A value that is out of range or not allowed.
struct ArgumentError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// Sizes or a number of dimensions that do not fit.
struct ShapeError : ArgumentError {
  using ArgumentError::ArgumentError;
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
// The arguments are right, but no kernel of this device serves them: the caller takes another way.
// The CPU never throws it, because its reference table serves everything.
struct Unserved : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class Error>
inline void require(bool condition, const std::string& message) {
  if (!condition) throw Error(message);
}

}  // namespace gossamer
