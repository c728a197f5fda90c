// Sparse codes: reads the arrays, checks every size and every index, releases the GIL, runs.
#include <limits>
#include <string>
#include <vector>

#include "bind/register.hpp"
#include "bind/tensor.hpp"
#include "codes/decode.hpp"
#include "codes/top_k.hpp"
#include "core/check.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();

Kind float_kind(const Tensor& t, const char* who) {
  require<DTypeError>(t.kind == Kind::f32 || t.kind == Kind::f64,
                      std::string(who) + " has dtype " + t.dtype() +
                          "; float32 or float64 is needed: convert it with .float()");
  return t.kind;
}

template <class I>
void copy_ids(const Tensor& t, std::int64_t latents, std::vector<std::int32_t>& out) {
  const I* data = static_cast<const I*>(t.data);
  std::size_t at = 0;
  for (std::int64_t b = 0; b < t.shape[0]; ++b) {
    for (std::int64_t j = 0; j < t.shape[1]; ++j) {
      const I id = data[b * t.strides[0] + j * t.strides[1]];
      // The message is made only when it is needed: this loop runs in front of every kernel.
      if (id < 0 || id >= latents) {
        throw StructureError("indices[" + std::to_string(b) + ", " + std::to_string(j) + "] is " +
                             std::to_string(id) + "; it must be in [0, " + std::to_string(latents) +
                             "), the rows of the dictionary");
      }
      out[at++] = static_cast<std::int32_t>(id);
    }
  }
}

// A copy whose entries were checked: nobody can change it while the kernels run without the GIL.
struct Ids {
  std::vector<std::int32_t> data;
  std::int64_t batch, k;

  Ids(py::handle object, std::int64_t latents) {
    const Tensor t = read_matrix(object, "indices");
    require<DTypeError>(
        t.kind == Kind::i64 || t.kind == Kind::i32,
        "indices has dtype " + t.dtype() + "; int64 or int32 is needed: convert it with .long()");
    batch = t.shape[0];
    k = t.shape[1];
    require<ShapeError>(batch > 0 && k > 0, "indices has shape " + shape_of(batch, k) +
                                                "; at least one row and one entry are needed");
    require<ShapeError>(latents <= most && t.numel() <= most,
                        "indices and the dictionary must have fewer than 2^31 entries and rows: "
                        "split the batch");
    data.resize(static_cast<std::size_t>(t.numel()));
    if (t.kind == Kind::i64) {
      copy_ids<std::int64_t>(t, latents, data);
    } else {
      copy_ids<std::int32_t>(t, latents, data);
    }
  }
};

template <class T>
T* at(const Tensor& t) {
  return static_cast<T*>(t.data);
}

// Calls body with a float or a double, without the GIL.
template <class F>
void by_dtype(Kind kind, F&& body) {
  adopt_torch_threads();
  const py::gil_scoped_release release;
  if (kind == Kind::f32) {
    body(float{});
  } else {
    body(double{});
  }
}

std::int64_t codes_top_k(py::handle x, std::int64_t k, py::handle values, py::handle indices) {
  const Tensor in = read_matrix(x, "x");
  const Kind kind = float_kind(in, "x");
  const std::int64_t batch = in.shape[0], n = in.shape[1];
  require<ShapeError>(batch > 0 && n > 0 && n <= most,
                      "x has shape " + shape_of(batch, n) +
                          "; at least one row, and between one and 2^31 - 1 entries a row");
  require<ArgumentError>(k >= 1 && k <= n, "k=" + std::to_string(k) + " must be in [1, " +
                                               std::to_string(n) + "], the entries of a row of x");
  require<ShapeError>(n == 1 || in.strides[1] == 1,
                      "the entries of a row of x must be contiguous: call .contiguous()");
  const Tensor out = read_block(values, "values", kind, batch, k, true);
  const Tensor ids = read_matrix(indices, "indices", true);
  require<DTypeError>(ids.kind == Kind::i64 || ids.kind == Kind::i32,
                      "indices has dtype " + ids.dtype() + "; int64 or int32 is needed");
  require<ShapeError>(ids.shape[0] == batch && ids.shape[1] == k && ids.contiguous(),
                      "indices must be contiguous, of shape " + shape_of(batch, k));
  std::int64_t bad = -1;
  by_dtype(kind, [&]<class T>(T) {
    bad = top_k<T>({at<T>(in), batch, n, in.strides[0], k, at<T>(out),
                    ids.kind == Kind::i32 ? at<std::int32_t>(ids) : nullptr,
                    ids.kind == Kind::i64 ? at<std::int64_t>(ids) : nullptr});
  });
  return bad;
}

struct Arguments {
  Tensor dictionary;
  Kind kind;
  Ids ids;
  Tensor values;

  Arguments(py::handle indices, py::handle codes, py::handle rows)
      : dictionary(read_matrix(rows, "dictionary")),
        kind(float_kind(dictionary, "dictionary")),
        ids(indices, dictionary.shape[0]),
        values(read_block(codes, "values", kind, ids.batch, ids.k)) {
    require<ShapeError>(dictionary.contiguous() && dictionary.shape[1] > 0,
                        "dictionary must be contiguous, [latents, d] with d at least 1: "
                        "call .contiguous()");
  }

  std::int64_t latents() const { return dictionary.shape[0]; }
  std::int64_t d() const { return dictionary.shape[1]; }

  template <class T>
  Codes<T> as() const {
    return {ids.data.data(), at<T>(values), at<T>(dictionary), ids.k, d()};
  }
};

void codes_decode(py::handle indices, py::handle values, py::handle dictionary, py::handle bias,
                  py::handle out) {
  const Arguments a(indices, values, dictionary);
  const Tensor y = read_block(out, "out", a.kind, a.ids.batch, a.d(), true);
  Tensor b;
  if (!bias.is_none()) {
    b = read_vector(bias, "bias", a.kind);
    require<ShapeError>(b.shape[0] == a.d(), "bias has " + std::to_string(b.shape[0]) +
                                                 " entries; " + std::to_string(a.d()) +
                                                 " are needed, as in a row of the dictionary");
  }
  by_dtype(a.kind, [&]<class T>(T) { decode<T>(a.as<T>(), a.ids.batch, at<T>(b), at<T>(y)); });
}

void codes_dots(py::handle indices, py::handle dictionary, py::handle grad_output, py::handle out) {
  read_matrix(out, "out", true);
  const Arguments a(indices, out, dictionary);
  const Tensor rows = read_block(grad_output, "grad_output", a.kind, a.ids.batch, a.d());
  by_dtype(a.kind,
           [&]<class T>(T) { code_dots<T>(a.as<T>(), a.ids.batch, at<T>(rows), at<T>(a.values)); });
}

// out comes all zero.
void codes_scatter(py::handle indices, py::handle values, py::handle grad_output, py::handle out) {
  read_matrix(out, "out", true);
  const Arguments a(indices, values, out);
  const Tensor rows = read_block(grad_output, "grad_output", a.kind, a.ids.batch, a.d());
  by_dtype(a.kind, [&]<class T>(T) {
    scatter_codes<T>(a.as<T>(), a.ids.batch, a.latents(), at<T>(rows), at<T>(a.dictionary));
  });
}

void codes_prefix_errors(py::handle indices, py::handle values, py::handle dictionary,
                         py::handle residual, py::handle errors) {
  const Arguments a(indices, values, dictionary);
  const Tensor r = read_block(residual, "residual", a.kind, a.ids.batch, a.d(), true);
  const Tensor e = read_block(errors, "errors", a.kind, a.ids.batch, a.ids.k, true);
  by_dtype(a.kind,
           [&]<class T>(T) { prefix_errors<T>(a.as<T>(), a.ids.batch, at<T>(r), at<T>(e)); });
}

void codes_prefix_gradients(py::handle indices, py::handle values, py::handle dictionary,
                            py::handle weights, py::handle residual, py::handle grad_values,
                            py::handle grad_dictionary) {
  const Arguments a(indices, values, dictionary);
  const Tensor w = read_block(weights, "weights", a.kind, a.ids.batch, a.ids.k);
  const Tensor r = read_block(residual, "residual", a.kind, a.ids.batch, a.d(), true);
  const Tensor gv = read_block(grad_values, "grad_values", a.kind, a.ids.batch, a.ids.k, true);
  const Tensor gd =
      read_block(grad_dictionary, "grad_dictionary", a.kind, a.latents(), a.d(), true);
  by_dtype(a.kind, [&]<class T>(T) {
    prefix_gradients<T>(a.as<T>(), a.ids.batch, a.latents(), at<T>(w), at<T>(r), at<T>(gv),
                        at<T>(gd));
  });
}

}  // namespace

void register_codes(py::module_& m) {
  m.def("top_k", codes_top_k);
  m.def("decode", codes_decode);
  m.def("dots", codes_dots);
  m.def("scatter", codes_scatter);
  m.def("prefix_errors", codes_prefix_errors);
  m.def("prefix_gradients", codes_prefix_gradients);
}

}  // namespace gossamer
