// Turns the errors of the core into the Python classes of the same names.
#include "bind/register.hpp"
#include "core/check.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

// Raises the class of this name from gossamer.errors, which is written in Python.
void raise_as(const char* name, const char* message) {
  const py::object type = py::module_::import("gossamer.errors").attr(name);
  PyErr_SetString(type.ptr(), message);
}

}  // namespace

void register_errors(py::module_& m) {
  // The most exact class first.
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const ShapeError& e) {
      raise_as("ShapeError", e.what());
    } catch (const ArgumentError& e) {
      raise_as("ArgumentError", e.what());
    } catch (const DTypeError& e) {
      raise_as("DTypeError", e.what());
    } catch (const DeviceError& e) {
      raise_as("DeviceError", e.what());
    } catch (const StructureError& e) {
      raise_as("StructureError", e.what());
    } catch (const Unserved& e) {
      raise_as("Unserved", e.what());
    }
  });
  m.attr("Unserved") = py::module_::import("gossamer.errors").attr("Unserved");
}

}  // namespace gossamer
