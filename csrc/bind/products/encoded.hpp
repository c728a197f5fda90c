// Arrays that the core has built, as Python takes them: NumPy arrays that own the vectors.
#pragma once

#include <pybind11/numpy.h>

#include <memory>
#include <utility>
#include <vector>

#include "bind/products/layout.hpp"
#include "products/structure.hpp"

namespace gossamer {

// No copy: at the size of a weight that would be a second one.
template <class T>
pybind11::array_t<T> to_numpy(std::vector<T>&& data) {
  auto owned = std::make_unique<std::vector<T>>(std::move(data));
  const auto size = static_cast<pybind11::ssize_t>(owned->size());
  const T* first = owned->data();
  const pybind11::capsule owner(owned.get(),
                                [](void* p) { delete static_cast<std::vector<T>*>(p); });
  owned.release();
  return pybind11::array_t<T>(size, first, owner);
}

// Layout, indices, and indptr or None.
inline pybind11::tuple to_python(Encoded&& e) {
  const Panels& w = e.layout;
  const Layout layout(w.rows, w.cols, w.vector, w.block_cols, w.n, w.m);
  pybind11::object indptr = pybind11::none();
  if (!w.fixed_count()) indptr = to_numpy(std::move(e.indptr));
  return pybind11::make_tuple(layout, to_numpy(std::move(e.indices)), indptr);
}

}  // namespace gossamer
