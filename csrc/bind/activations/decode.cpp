// Decoding: reads the arrays, checks every size, releases the GIL, runs.
#include <string>
#include <type_traits>

#include "activations/decode.hpp"
#include "bind/activations/read.hpp"
#include "bind/register.hpp"

namespace gossamer {
namespace {

py::tuple activations_decode(py::handle x, py::handle gate, py::handle up, py::handle down,
                             py::handle gate_bias, py::handle up_bias, py::handle down_bias,
                             bool square, py::handle dense_gate, py::handle q, py::handle stats,
                             py::handle row_sums, float slack, py::handle y) {
  const Tensor shape = read_matrix(gate, "gate"), in_shape = read_matrix(x, "x");
  const Kind kind = shape.kind, sums = sums_of(kind);
  const std::int64_t neurons = shape.shape[0], d = shape.shape[1], tokens = in_shape.shape[0];
  require<ShapeError>(tokens > 0 && tokens <= few_tokens && neurons > 0 && d > 0,
                      "x has " + std::to_string(tokens) + " rows; 1 to " +
                          std::to_string(few_tokens) + " are needed, of at least one column");
  const Tensor in = read_block(x, "x", kind, tokens, d);
  const Tensor g = read_block(gate, "gate", kind, neurons, d);
  const Tensor o = read_block(down, "down", kind, neurons, d);
  const Tensor out = read_block(y, "y", kind, tokens, d, true);
  Tensor u, g_bias, u_bias, o_bias, dense, bytes, of_rows, of_sums;
  if (!up.is_none()) u = read_block(up, "up", kind, neurons, d);
  if (!gate_bias.is_none()) g_bias = read_entries(gate_bias, "gate_bias", sums, neurons);
  if (!up_bias.is_none()) u_bias = read_entries(up_bias, "up_bias", sums, neurons);
  if (!down_bias.is_none()) o_bias = read_entries(down_bias, "down_bias", sums, d);
  if (!dense_gate.is_none()) {
    dense = read_block(dense_gate, "dense_gate", kind, tokens, neurons);
  } else {
    require<DTypeError>(kind != Kind::f64,
                        "the weights are float64, and the int8 gate takes float32 or bfloat16: "
                        "pass dense_gate");
    require<ShapeError>(d <= 65536, "x has more than 65536 columns: pass dense_gate");
    bytes = read_block(q, "q", Kind::u8, neurons, round_up(d, 4));
    of_rows = read_block(stats, "stats", Kind::f32, neurons, 4);
    of_sums = read_entries(row_sums, "sums", Kind::i32, neurons);
  }
  DecodeCounts counts{};
  by_dtype(in, "x", [&]<class T>(T) {
    using C = Compute<T>;
    const DecodeArgs<T> args{
        at<T>(in),
        tokens,
        neurons,
        d,
        at<T>(g),
        at<T>(u),
        at<T>(o),
        at<C>(g_bias),
        at<C>(u_bias),
        at<C>(o_bias),
        square,
        at<T>(dense),
        {at<std::int8_t>(bytes), at<RowStats>(of_rows), at<std::int32_t>(of_sums)},
        slack};
    counts = decode<T>(args, at<T>(out));
  });
  return py::make_tuple(counts.live, counts.screened);
}

}  // namespace

void register_decoding(py::module_& m) { m.def("decode", activations_decode); }

}  // namespace gossamer
