// Convolutions: reads the images, checks every size, releases the GIL, runs. Arguments stand in the
// order of gossamer.backend.
#include "products/convolve.hpp"

#include <pybind11/stl.h>

#include <vector>

#include "bind/products/layout.hpp"
#include "bind/register.hpp"
#include "bind/tensor.hpp"
#include "core/check.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

using Numbers = std::vector<std::int64_t>;

std::string text(std::int64_t x) { return std::to_string(x); }

// kernel, stride, padding in front, dilation: depth, height, width each; then groups.
Convolution read_geometry(const Numbers& given) {
  require<ShapeError>(given.size() == 13, "the geometry has " + std::to_string(given.size()) +
                                              " numbers; 13 are needed: kernel, stride, padding "
                                              "and dilation of three dimensions, and groups");
  // Places in an image are sums of a few products of these.
  constexpr std::int64_t most = std::int64_t{1} << 31;
  Convolution how;
  for (std::size_t i = 0; i < 3; ++i) {
    how.kernel[i] = given[i];
    how.stride[i] = given[3 + i];
    how.padding[i] = given[6 + i];
    how.dilation[i] = given[9 + i];
    require<ShapeError>(
        0 < given[i] && given[i] < most && 0 < given[3 + i] && given[3 + i] < most &&
            0 <= given[6 + i] && given[6 + i] < most && 0 < given[9 + i] && given[9 + i] < most,
        "kernel " + text(given[i]) + ", stride " + text(given[3 + i]) + ", padding " +
            text(given[6 + i]) + " and dilation " + text(given[9 + i]) +
            " were given; they must be positive (padding: not negative) and below 2^31");
  }
  how.groups = given[12];
  require<ShapeError>(how.groups > 0, "groups is " + text(how.groups) + "; it must be positive");
  return how;
}

Images images_of(const Tensor& t) noexcept {
  Images images;
  images.data = t.data;
  for (int i = 0; i < 5; ++i) {
    images.shape[i] = t.shape[i];
    images.strides[i] = t.strides[i];
  }
  return images;
}

// Images of one or two dimensions have a depth, and a height, of 1.
void add_dimensions(Tensor& t) noexcept {
  if (t.rank < 3 || t.rank > 4) return;
  const auto missing = static_cast<std::size_t>(5 - t.rank);
  for (std::size_t i = 4; i >= 2 + missing; --i) {
    t.shape[i] = t.shape[i - missing];
    t.strides[i] = t.strides[i - missing];
  }
  for (std::size_t i = 2; i < 2 + missing; ++i) {
    t.shape[i] = 1;
    t.strides[i] = 0;
  }
  t.rank = 5;
}

Tensor read_images(py::handle object, const char* who, Kind kind, std::int64_t channels,
                   bool writable = false) {
  Tensor t = read_tensor(object, who, writable, 5);
  const int given = t.rank;
  add_dimensions(t);
  require<ShapeError>(t.rank == 5 && t.shape[1] == channels,
                      std::string(who) + " must be [images, " + text(channels) +
                          ", *size] with one to three sizes, got " + text(given) + " dimensions" +
                          (t.rank > 1 ? " and " + text(t.shape[1]) + " channels" : ""));
  require<DTypeError>(t.kind == kind, std::string(who) + " has dtype " + t.dtype() + "; " +
                                          name_of(kind) + " is needed, as in the other arguments");
  return t;
}

Tensor read_values(const Panels& w, py::handle object, const char* who, bool writable = false) {
  Tensor t = read_tensor(object, who, writable);
  float_dtype(t, who);
  require<ShapeError>(t.rank == 1 && t.contiguous() && t.shape[0] == w.nnz(),
                      std::string(who) + " must be a contiguous vector of " + text(w.nnz()) +
                          " elements (entries * vector), got " + text(t.numel()));
  return t;
}

std::int64_t channels_of(const Panels& w, const Convolution& how) {
  std::int64_t taps = 1;
  for (const std::int64_t k : how.kernel) taps *= k;
  require<ShapeError>(
      taps > 0 && w.cols % taps == 0 && w.rows % how.groups == 0 &&
          w.rows / how.groups % w.vector == 0,
      "a weight of " + text(w.rows) + " x " + text(w.cols) + " in panels of " + text(w.vector) +
          " rows does not fit " + text(taps) + " taps and " + text(how.groups) +
          " groups; its columns must be taps * channels, and the rows of a group whole panels");
  return w.cols / taps * how.groups;
}

void check_fit(const Tensor& x, const Tensor& y) {
  require<ShapeError>(x.shape[0] == y.shape[0], text(x.shape[0]) + " images and " +
                                                    text(y.shape[0]) +
                                                    " outputs were given; one each is needed");
}

Queue queue_of(int device, std::uintptr_t stream) noexcept {
  return {device, reinterpret_cast<void*>(stream)};
}

void convolve_forward(py::handle x, py::handle values, const Layout& layout, py::handle indices,
                      py::handle indptr, py::handle bias, const Numbers& geometry, py::handle y,
                      int device, std::uintptr_t stream) {
  const Panels w = read_panels(layout, indices, indptr);
  const Convolution how = read_geometry(geometry);
  const std::int64_t channels = channels_of(w, how);
  const Tensor v = read_values(w, values, "values");
  const Tensor in = read_images(x, "x", v.kind, channels);
  const Tensor out = read_images(y, "y", v.kind, w.rows, true);
  check_fit(in, out);
  const void* b = nullptr;
  if (!bias.is_none()) {
    const Tensor t = read_vector(bias, "bias", v.kind);
    require<ShapeError>(
        t.shape[0] == w.rows,
        "bias has " + text(t.shape[0]) + " elements; the weight has " + text(w.rows) + " rows");
    b = t.data;
  }
  const DType dtype = float_dtype(v, "values");
  const py::gil_scoped_release release;
  convolve(images_of(in), v.data, w, b, images_of(out), how, dtype, queue_of(device, stream));
}

void convolve_to_input(py::handle grad_output, py::handle values, const Layout& layout,
                       py::handle indices, py::handle indptr, py::object t_layout,
                       py::handle t_indices, py::handle t_indptr, py::handle perm,
                       const Numbers& geometry, py::handle grad_input, int device,
                       std::uintptr_t stream) {
  const Panels w = read_panels(layout, indices, indptr);
  const Convolution how = read_geometry(geometry);
  const std::int64_t channels = channels_of(w, how);
  TransposedPanels turned;
  if (!t_layout.is_none()) {
    turned.panels = read_panels(t_layout.cast<const Layout&>(), t_indices, t_indptr);
    const Tensor order = read_vector(perm, "perm", Kind::i32);
    const Panels& t = turned.panels;
    require<StructureError>(
        t.rows == w.cols && t.cols == w.rows && t.nnz() <= w.nnz() && order.shape[0] == t.nnz(),
        "the transposed structure does not belong to this weight: build it again");
    turned.perm = static_cast<const std::int32_t*>(order.data);
  }
  const Tensor v = read_values(w, values, "values");
  const Kind sums = v.kind == Kind::f64 ? Kind::f64 : Kind::f32;
  const Tensor from = read_images(grad_output, "grad_output", v.kind, w.rows);
  const Tensor to = read_images(grad_input, "grad_input", sums, channels, true);
  check_fit(to, from);
  const DType dtype = float_dtype(v, "values");
  const py::gil_scoped_release release;
  convolve_input(images_of(from), v.data, w, turned, images_of(to), how, dtype,
                 queue_of(device, stream));
}

void convolve_to_weight(py::handle grad_output, py::handle x, const Layout& layout,
                        py::handle indices, py::handle indptr, const Numbers& geometry,
                        py::handle grad_values, int device, std::uintptr_t stream) {
  const Panels w = read_panels(layout, indices, indptr);
  const Convolution how = read_geometry(geometry);
  const std::int64_t channels = channels_of(w, how);
  const Tensor v = read_values(w, grad_values, "grad_values", true);
  const Tensor from = read_images(grad_output, "grad_output", v.kind, w.rows);
  const Tensor in = read_images(x, "x", v.kind, channels);
  check_fit(in, from);
  const DType dtype = float_dtype(v, "grad_values");
  const py::gil_scoped_release release;
  convolve_weight(images_of(from), images_of(in), w, v.data, how, dtype, queue_of(device, stream));
}

}  // namespace

void register_convolve(py::module_& m) {
  using py::arg;
  const auto device = arg("device") = -1;
  const auto stream = arg("stream") = 0;
  m.def("convolve", convolve_forward, arg("x"), arg("values"), arg("layout"), arg("indices"),
        arg("indptr"), arg("bias"), arg("geometry"), arg("y"), device, stream, py::pos_only());
  m.def("convolve_input", convolve_to_input, arg("grad_output"), arg("values"), arg("layout"),
        arg("indices"), arg("indptr"), arg("t_layout"), arg("t_indices"), arg("t_indptr"),
        arg("perm"), arg("geometry"), arg("grad_input"), device, stream, py::pos_only());
  m.def("convolve_weight", convolve_to_weight, arg("grad_output"), arg("x"), arg("layout"),
        arg("indices"), arg("indptr"), arg("geometry"), arg("grad_values"), device, stream,
        py::pos_only());
}

}  // namespace gossamer
