#include "bind/tensor.hpp"

#include <array>
#include <utility>
#include <vector>

#include "core/check.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

constexpr std::array<std::pair<const char*, Kind>, 7> torch_kinds = {{
    {"torch.float32", Kind::f32},
    {"torch.float64", Kind::f64},
    {"torch.bfloat16", Kind::bf16},
    {"torch.uint8", Kind::u8},
    {"torch.bool", Kind::boolean},
    {"torch.int32", Kind::i32},
    {"torch.int64", Kind::i64},
}};

// torch dtypes are singletons that live as long as the process: compared by address after the
// first time, because turning one into text costs more than a small product.
Kind torch_kind(py::handle dtype, std::string& name) {
  static std::vector<std::pair<PyObject*, Kind>> seen;
  for (const auto& [object, kind] : seen) {
    if (object == dtype.ptr()) return kind;
  }
  name = py::str(dtype).cast<std::string>();
  for (const auto& [text, kind] : torch_kinds) {
    if (name == text) {
      seen.emplace_back(py::reinterpret_borrow<py::object>(dtype).release().ptr(), kind);
      return kind;
    }
  }
  return Kind::other;
}

struct Names {
  py::str data_ptr{"data_ptr"}, dtype{"dtype"}, shape{"shape"}, stride{"stride"}, is_neg{"is_neg"},
      is_here{std::string("is_") + module_device};  // is_cpu, is_cuda
  const bool on_cpu = std::string(module_device) == "cpu";
};
const Names& names() {
  static const auto* instance = new Names;  // outlives the interpreter's own teardown
  return *instance;
}

void set_rank(Tensor& t, std::int64_t rank, const char* who, int most) {
  require<ShapeError>(rank <= most, std::string(who) + " has " + std::to_string(rank) +
                                        " dimensions; at most " + std::to_string(most) +
                                        " are possible here: reshape it");
  t.rank = static_cast<int>(rank);
}

Tensor read_torch(py::handle object, const char* who, int most) {
  Tensor t;
  if (!object.attr(names().is_here).cast<bool>()) {
    throw DeviceError(std::string(who) + " is on device " +
                      py::str(object.attr("device")).cast<std::string>() + "; these are " +
                      module_device + " kernels: move it with ." + module_device + "()");
  }
  if (!names().on_cpu) t.device = object.attr("device").attr("index").cast<int>();
  const py::object dtype = object.attr(names().dtype);
  t.kind = torch_kind(dtype, t.dtype_name);
  try {
    const py::tuple shape = object.attr(names().shape);
    set_rank(t, static_cast<std::int64_t>(shape.size()), who, most);
    const py::tuple stride = object.attr(names().stride)();
    for (int i = 0; i < t.rank; ++i) {
      t.shape[i] = shape[static_cast<std::size_t>(i)].cast<std::int64_t>();
      t.strides[i] = stride[static_cast<std::size_t>(i)].cast<std::int64_t>();
    }
    t.data = reinterpret_cast<void*>(object.attr(names().data_ptr)().cast<std::uintptr_t>());
  } catch (const py::error_already_set&) {
    throw DTypeError(std::string(who) +
                     " is a torch tensor without plain memory (sparse, nested or mkldnn); "
                     "a strided one is needed: call .to_dense()");
  }
  require<DeviceError>(t.data != nullptr || t.numel() == 0,
                       std::string(who) +
                           " has sizes but no memory (a fake tensor, or its storage was freed); "
                           "give it data first");
  require<DTypeError>(!object.attr(names().is_neg)().cast<bool>(),
                      std::string(who) +
                          " is a lazy negative view, its memory holds the opposite sign: "
                          "call .resolve_neg()");
  return t;
}

Kind numpy_kind(const py::buffer_info& info) {
  const std::string& f = info.format;
  if (f == "f") return Kind::f32;
  if (f == "d") return Kind::f64;
  if (f == "B") return Kind::u8;
  if (f == "?") return Kind::boolean;
  if ((f == "i" || f == "l" || f == "q") && info.itemsize == 4) return Kind::i32;
  if ((f == "i" || f == "l" || f == "q") && info.itemsize == 8) return Kind::i64;
  return Kind::other;
}

Tensor read_buffer(py::handle object, const char* who, bool writable, int most) {
  const auto info = py::reinterpret_borrow<py::buffer>(object).request();
  Tensor t;
  t.kind = numpy_kind(info);
  t.dtype_name = "NumPy '" + info.format + "'";
  require<DTypeError>(info.itemsize > 0,
                      std::string(who) + " has dtype " + t.dtype_name +
                          ", whose elements have no bytes; float32 or float64 is needed");
  set_rank(t, info.ndim, who, most);
  require<ArgumentError>(!writable || !info.readonly,
                         std::string(who) + " is read-only; pass a writable copy: array.copy()");
  bool aligned =
      reinterpret_cast<std::uintptr_t>(info.ptr) % static_cast<std::uintptr_t>(info.itemsize) == 0;
  for (int i = 0; i < t.rank; ++i) {
    const auto at = static_cast<std::size_t>(i);
    aligned &= info.strides[at] % info.itemsize == 0;
    t.shape[i] = info.shape[at];
    t.strides[i] = info.strides[at] / info.itemsize;
  }
  require<ArgumentError>(
      aligned, std::string(who) + " is not aligned to its elements; pass a copy: array.copy()");
  t.data = info.ptr;
  return t;
}

}  // namespace

bool Tensor::contiguous() const noexcept {
  if (numel() == 0) return true;
  std::int64_t behind = 1;  // entries that a step of this dimension passes
  for (int i = rank - 1; i >= 0; --i) {
    if (shape[i] != 1 && strides[i] != behind) return false;
    behind *= shape[i];
  }
  return true;
}

std::string Tensor::dtype() const { return kind == Kind::other ? dtype_name : name_of(kind); }

void adopt_torch_threads() {
  thread_local bool adopted = false;
  if (adopted) return;
  const py::dict modules = py::module_::import("sys").attr("modules");
  if (!modules.contains("torch")) return;
  modules["torch"].attr("get_num_threads")();
  adopted = true;
}

std::string device_name(int device) {
  return device < 0 ? module_device : std::string(module_device) + ":" + std::to_string(device);
}

const char* name_of(Kind kind) noexcept {
  switch (kind) {
    case Kind::f32: return "float32";
    case Kind::f64: return "float64";
    case Kind::bf16: return "bfloat16";
    case Kind::u8: return "uint8";
    case Kind::boolean: return "bool";
    case Kind::i32: return "int32";
    case Kind::i64: return "int64";
    default: return "another dtype";
  }
}

Tensor read_tensor(py::handle object, const char* who, bool writable, int most) {
  // A torch storage has a data_ptr as well, but is no tensor.
  if (py::hasattr(object, names().data_ptr) && py::hasattr(object, names().is_here)) {
    return read_torch(object, who, most);
  }
  if (PyObject_CheckBuffer(object.ptr()) != 0 && py::hasattr(object, names().dtype)) {
    return read_buffer(object, who, writable, most);
  }
  throw DTypeError(std::string(who) + " is a " +
                   std::string(py::str(py::type::of(object).attr("__name__"))) +
                   "; a torch CPU tensor or a NumPy array is needed");
}

Tensor read_matrix(py::handle object, const char* who, bool writable) {
  Tensor t = read_tensor(object, who, writable);
  require<ShapeError>(t.rank == 2,
                      std::string(who) + " has " + std::to_string(t.rank) +
                          " dimensions; 2 are needed: reshape it to [batch, features]");
  return t;
}

Tensor read_vector(py::handle object, const char* who, Kind kind, bool writable) {
  Tensor t = read_tensor(object, who, writable);
  require<DTypeError>(t.kind == kind, std::string(who) + " has dtype " + t.dtype() + "; " +
                                          name_of(kind) + " is needed");
  require<ShapeError>(
      t.rank == 1 && t.contiguous(),
      std::string(who) + " must be one-dimensional and contiguous: call .contiguous()");
  return t;
}

std::string shape_of(std::int64_t rows, std::int64_t cols) {
  return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
}

Tensor read_block(py::handle object, const char* who, Kind kind, std::int64_t rows,
                  std::int64_t cols, bool writable) {
  const Tensor t = read_matrix(object, who, writable);
  require<DTypeError>(t.kind == kind, std::string(who) + " has dtype " + t.dtype() + "; " +
                                          name_of(kind) + " is needed, as in the other arguments");
  require<ShapeError>(t.shape[0] == rows && t.shape[1] == cols,
                      std::string(who) + " has shape " + shape_of(t.shape[0], t.shape[1]) + "; " +
                          shape_of(rows, cols) + " is needed");
  require<ShapeError>(t.contiguous(), std::string(who) + " must be contiguous: call .contiguous()");
  return t;
}

DType float_dtype(const Tensor& t, const char* who) {
  switch (t.kind) {
    case Kind::f32: return DType::f32;
    case Kind::f64: return DType::f64;
    case Kind::bf16: return DType::bf16;
    default:
      throw DTypeError(std::string(who) + " has dtype " + t.dtype() +
                       "; float32, float64 or bfloat16 is needed: convert it with .float()");
  }
}

}  // namespace gossamer
