// What the bindings of sparse activations read, and how they choose the dtype of a kernel.
#pragma once

#include <string>

#include "bind/tensor.hpp"
#include "core/check.hpp"

namespace gossamer {

namespace py = pybind11;

template <class T>
T* at(const Tensor& t) {
  return static_cast<T*>(t.data);
}

// The dtype of the sums: what gates and factors are given in.
inline Kind sums_of(Kind kind) { return kind == Kind::f64 ? Kind::f64 : Kind::f32; }

// Calls body with a float, a double or a bf16, without the GIL.
template <class F>
void by_dtype(const Tensor& t, const char* who, F&& body) {
  const DType dtype = float_dtype(t, who);
  adopt_torch_threads();
  const py::gil_scoped_release release;
  if (dtype == DType::f32) {
    body(float{});
  } else if (dtype == DType::f64) {
    body(double{});
  } else {
    body(bf16{});
  }
}

inline Tensor read_entries(py::handle object, const char* who, Kind kind, std::int64_t count,
                           bool writable = false) {
  const Tensor t = read_vector(object, who, kind, writable);
  require<ShapeError>(t.shape[0] == count, std::string(who) + " has " + std::to_string(t.shape[0]) +
                                               " entries; " + std::to_string(count) +
                                               " are needed");
  return t;
}

}  // namespace gossamer
