// Sparse activations: reads the arrays, checks every size and every pair, releases the GIL, runs.
#include <limits>
#include <string>

#include "activations/gate.hpp"
#include "activations/pairs.hpp"
#include "bind/activations/read.hpp"
#include "bind/register.hpp"
#include "core/check.hpp"

namespace py = pybind11;

namespace gossamer {
namespace {

constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();

struct Pairs {
  LivePairs live;

  Pairs(py::handle indptr, py::handle tokens, std::int64_t neurons, std::int64_t batch,
        std::int64_t tile) {
    require<ShapeError>(neurons > 0 && batch > 0 && tile > 0 && neurons <= most && batch <= most,
                        "neurons=" + std::to_string(neurons) + ", batch=" + std::to_string(batch) +
                            " and tile=" + std::to_string(tile) +
                            " must be positive, and fewer than 2^31");
    const Tensor t = read_vector(tokens, "tokens", Kind::i32);
    live = {nullptr, at<std::int32_t>(t), t.shape[0], neurons, batch, tile};
    live.indptr =
        at<std::int64_t>(read_entries(indptr, "indptr", Kind::i64, live.tiles() * neurons + 1));
    check_pairs(live);
  }
};

std::int64_t activations_compact(py::handle gate, std::int64_t token0, py::handle indptr,
                                 py::handle tokens, py::handle values) {
  const Tensor block = read_matrix(gate, "gate");
  require<ShapeError>(block.contiguous(), "gate must be contiguous: call .contiguous()");
  const std::int64_t rows = block.shape[0], count = block.shape[1];
  require<ShapeError>(token0 >= 0 && token0 + count <= most,
                      "tokens must be fewer than 2^31: split the batch");
  const Tensor starts = read_entries(indptr, "indptr", Kind::i64, rows + 1, true);
  const Tensor ids = read_vector(tokens, "tokens", Kind::i32, true);
  const Tensor kept = read_entries(values, "values", sums_of(block.kind), ids.shape[0], true);
  require<StructureError>(*at<std::int64_t>(starts) >= 0,
                          "indptr[0] is " + std::to_string(*at<std::int64_t>(starts)) +
                              "; the place of the first pair is needed, at least 0");
  std::int64_t end = 0;
  by_dtype(block, "gate", [&]<class T>(T) {
    end = compact<T>(at<T>(block), rows, count, token0, ids.shape[0], at<std::int64_t>(starts),
                     at<std::int32_t>(ids), at<Compute<T>>(kept));
  });
  return end;
}

Tensor read_source(py::handle object, const char* who) {
  const Tensor t = read_matrix(object, who);
  require<DTypeError>(t.kind == Kind::f32 || t.kind == Kind::bf16,
                      std::string(who) + " has dtype " + t.dtype() +
                          "; float32 or bfloat16 is needed: the int8 gate has no other");
  require<ShapeError>(
      t.contiguous() && t.shape[1] > 0 && t.shape[1] <= 65536,
      std::string(who) + " must be contiguous, with 1 to 65536 columns: call .contiguous()");
  return t;
}

template <class F>
void by_source(const Tensor& t, F&& body) {
  adopt_torch_threads();
  const py::gil_scoped_release release;
  if (t.kind == Kind::f32) {
    body(float{});
  } else {
    body(bf16{});
  }
}

void activations_quantize_rows(py::handle w, py::handle q, py::handle stats, py::handle sums) {
  const Tensor in = read_source(w, "w");
  const std::int64_t rows = in.shape[0], d = in.shape[1];
  const Tensor bytes = read_block(q, "q", Kind::u8, rows, round_up(d, 4), true);
  const Tensor s = read_block(stats, "stats", Kind::f32, rows, 4, true);
  const Tensor n = read_entries(sums, "sums", Kind::i32, rows, true);
  by_source(in, [&]<class T>(T) {
    quantize_rows<T>(at<T>(in), rows, d,
                     {at<std::int8_t>(bytes), at<RowStats>(s), at<std::int32_t>(n)});
  });
}

void activations_quantize_tokens(py::handle x, py::handle q, py::handle stats) {
  const Tensor in = read_source(x, "x");
  const std::int64_t tokens = in.shape[0], d = in.shape[1];
  const std::int64_t blocks = ceil_div(tokens, word_tokens), padded = blocks * word_tokens;
  const Tensor bytes = read_block(q, "q", Kind::u8, blocks, round_up(d, 4) * word_tokens, true);
  const Tensor s = read_block(stats, "stats", Kind::f32, 3, padded, true);
  by_source(in, [&]<class T>(T) {
    float* scale = at<float>(s);
    quantize_tokens<T>(at<T>(in), tokens, d,
                       {at<std::uint8_t>(bytes), scale, scale + padded, scale + 2 * padded});
  });
}

std::int64_t activations_screen(py::handle x, py::handle x_stats, py::handle w, py::handle w_stats,
                                py::handle w_sums, py::handle bias, std::int64_t tokens,
                                float slack, py::handle bits, py::handle indptr) {
  const Tensor rows = read_matrix(w, "w");
  const std::int64_t neurons = rows.shape[0], bytes = rows.shape[1];
  require<ShapeError>(tokens > 0 && bytes > 0 && bytes % 4 == 0,
                      "at least one token and rows of a multiple of 4 bytes are needed");
  const std::int64_t blocks = ceil_div(tokens, word_tokens), padded = blocks * word_tokens;
  const Tensor qw = read_block(w, "w", Kind::u8, neurons, bytes);
  const Tensor qx = read_block(x, "x", Kind::u8, blocks, bytes * word_tokens);
  const Tensor sx = read_block(x_stats, "x_stats", Kind::f32, 3, padded);
  const Tensor sw = read_block(w_stats, "w_stats", Kind::f32, neurons, 4);
  const Tensor sums = read_entries(w_sums, "w_sums", Kind::i32, neurons);
  Tensor b;
  if (!bias.is_none()) b = read_entries(bias, "bias", Kind::f32, neurons);
  const Tensor words = read_block(bits, "bits", Kind::i64, neurons, blocks, true);
  const Tensor starts = read_entries(indptr, "indptr", Kind::i64, neurons + 1, true);
  const float* scale = at<float>(sx);
  const ScreenArgs args{at<std::uint8_t>(qx),
                        scale,
                        scale + padded,
                        scale + 2 * padded,
                        at<std::int8_t>(qw),
                        at<RowStats>(sw),
                        at<std::int32_t>(sums),
                        at<float>(b),
                        tokens,
                        bytes / 4,
                        slack};
  adopt_torch_threads();
  const py::gil_scoped_release release;
  screen_rows(args, neurons, at<std::uint64_t>(words), at<std::int64_t>(starts));
  return at<std::int64_t>(starts)[neurons];
}

void activations_expand(py::handle bits, std::int64_t token0, py::handle indptr,
                        py::handle tokens) {
  const Tensor words = read_matrix(bits, "bits");
  const std::int64_t rows = words.shape[0], blocks = words.shape[1];
  read_block(bits, "bits", Kind::i64, rows, blocks);
  const Tensor starts = read_entries(indptr, "indptr", Kind::i64, rows + 1);
  const Tensor ids = read_vector(tokens, "tokens", Kind::i32, true);
  const auto* word = at<std::uint64_t>(words);
  const auto* start = at<std::int64_t>(starts);
  std::int64_t place = start[0];
  bool fits = place >= 0;
  for (std::int64_t r = 0; r < rows && fits; ++r) {
    for (std::int64_t b = 0; b < blocks; ++b) place += __builtin_popcountll(word[r * blocks + b]);
    fits = start[r + 1] == place;
  }
  require<StructureError>(fits && place <= ids.shape[0],
                          "indptr does not count the bits of each row; pass what screen() wrote");
  adopt_torch_threads();
  const py::gil_scoped_release release;
  expand_bits(word, rows, blocks, token0, start, at<std::int32_t>(ids));
}

std::int64_t activations_keep(py::handle indptr, py::handle tokens, std::int64_t neurons,
                              std::int64_t batch, std::int64_t tile, py::handle gate,
                              py::handle kept_indptr, py::handle kept_tokens, py::handle kept) {
  const Pairs pairs(indptr, tokens, neurons, batch, tile);
  const std::int64_t count = pairs.live.count;
  const Tensor g = read_tensor(gate, "gate");
  const Kind kind = g.kind;
  require<DTypeError>(kind == Kind::f32 || kind == Kind::f64,
                      "gate has dtype " + g.dtype() + "; float32 or float64 is needed");
  read_entries(gate, "gate", kind, count);
  const Tensor starts =
      read_entries(kept_indptr, "kept_indptr", Kind::i64, pairs.live.tiles() * neurons + 1, true);
  const Tensor ids = read_entries(kept_tokens, "kept_tokens", Kind::i32, count, true);
  const Tensor out = read_entries(kept, "kept", kind, count, true);
  std::int64_t n = 0;
  by_dtype(g, "gate", [&]<class T>(T) {
    if constexpr (!std::is_same_v<T, bf16>) {
      n = count_live<T>(pairs.live, at<T>(g), at<std::int64_t>(starts));
      keep_live<T>(pairs.live, at<T>(g), at<std::int64_t>(starts), at<std::int32_t>(ids),
                   at<T>(out));
    }
  });
  return n;
}

void activations_sample(py::handle indptr, py::handle tokens, std::int64_t neurons,
                        std::int64_t batch, std::int64_t tile, py::handle x, py::handle w,
                        py::handle bias, py::handle out) {
  const Pairs pairs(indptr, tokens, neurons, batch, tile);
  const Tensor rows = read_matrix(w, "w");
  const Tensor weight = read_block(w, "w", rows.kind, neurons, rows.shape[1]);
  const Tensor in = read_block(x, "x", weight.kind, batch, weight.shape[1]);
  const Kind sums = sums_of(weight.kind);
  Tensor b;
  if (!bias.is_none()) b = read_entries(bias, "bias", sums, neurons);
  const Tensor y = read_entries(out, "out", sums, pairs.live.count, true);
  by_dtype(weight, "w", [&]<class T>(T) {
    using C = Compute<T>;
    sample_products<T>(pairs.live, at<T>(in), at<T>(weight), weight.shape[1], at<C>(b), at<C>(y));
  });
}

void activations_scatter(py::handle indptr, py::handle tokens, std::int64_t neurons,
                         std::int64_t batch, std::int64_t tile, py::handle w, py::handle a,
                         py::handle w2, py::handle b, py::handle out) {
  const Pairs pairs(indptr, tokens, neurons, batch, tile);
  const Tensor rows = read_matrix(w, "w");
  const Tensor weight = read_block(w, "w", rows.kind, neurons, rows.shape[1]);
  const Kind sums = sums_of(weight.kind);
  const Tensor first = read_entries(a, "a", sums, pairs.live.count);
  Tensor weight2, second;
  if (!w2.is_none()) {
    weight2 = read_block(w2, "w2", weight.kind, neurons, weight.shape[1]);
    second = read_entries(b, "b", sums, pairs.live.count);
  }
  const Tensor y = read_block(out, "out", weight.kind, batch, weight.shape[1], true);
  by_dtype(weight, "w", [&]<class T>(T) {
    using C = Compute<T>;
    scatter_rows<T>(pairs.live, weight.shape[1], at<T>(weight), at<C>(first), at<T>(weight2),
                    at<C>(second), at<T>(y));
  });
}

void activations_accumulate(py::handle indptr, py::handle tokens, std::int64_t neurons,
                            std::int64_t batch, std::int64_t tile, py::handle x,
                            py::handle grad_output, py::handle a, py::handle b, py::handle c,
                            py::handle gate, py::handle up, py::handle down) {
  const Pairs pairs(indptr, tokens, neurons, batch, tile);
  const std::int64_t count = pairs.live.count;
  const Tensor shape = read_matrix(x, "x");
  const Kind kind = shape.kind, sums = sums_of(kind);
  const std::int64_t d = shape.shape[1];
  const Tensor in = read_block(x, "x", kind, batch, d);
  const Tensor dy = read_block(grad_output, "grad_output", kind, batch, d);
  const Tensor first = read_entries(a, "a", sums, count);
  const Tensor third = read_entries(c, "c", sums, count);
  const Tensor g = read_block(gate, "gate", kind, neurons, d, true);
  const Tensor o = read_block(down, "down", kind, neurons, d, true);
  Tensor second, u;
  if (!up.is_none()) {
    second = read_entries(b, "b", sums, count);
    u = read_block(up, "up", kind, neurons, d, true);
  }
  by_dtype(in, "x", [&]<class T>(T) {
    using C = Compute<T>;
    accumulate_rows<T>(pairs.live, at<T>(in), at<T>(dy), at<C>(first), at<C>(second), at<C>(third),
                       {at<T>(g), at<T>(u), at<T>(o), d, d, neurons});
  });
}

void activations_sum_neurons(py::handle indptr, py::handle tokens, std::int64_t neurons,
                             std::int64_t batch, std::int64_t tile, py::handle values,
                             py::handle out) {
  const Pairs pairs(indptr, tokens, neurons, batch, tile);
  const Tensor v = read_tensor(values, "values");
  const Tensor in = read_entries(values, "values", sums_of(v.kind), pairs.live.count);
  const Tensor sums = read_entries(out, "out", in.kind, neurons, true);
  by_dtype(in, "values", [&]<class T>(T) {
    if constexpr (!std::is_same_v<T, bf16>) {
      sum_neurons<T>(pairs.live, at<T>(in), at<T>(sums));
    }
  });
}

}  // namespace

void register_activations(py::module_& m) {
  m.def("compact", activations_compact);
  m.def("quantize_rows", activations_quantize_rows);
  m.def("quantize_tokens", activations_quantize_tokens);
  m.def("screen", activations_screen);
  m.def("screen_table", screen_table);
  m.def("expand", activations_expand);
  m.def("keep", activations_keep);
  m.def("sample", activations_sample);
  m.def("scatter", activations_scatter);
  m.def("accumulate", activations_accumulate);
  m.def("sum_neurons", activations_sum_neurons);
}

}  // namespace gossamer
