"""Every kernel of sparse activations, of every table and dtype, against the formula in float64."""

import pytest
import torch
from torch import Tensor

from gossamer import backend
from gossamer.activations.gate import float_gate, int8_gate
from gossamer.backend import activations as kernels
from gossamer.errors import DTypeError, GossamerError, ShapeError, StructureError
from tests.support.activation_oracle import make, mask_of, pairs_of

ISAS = backend.isas()
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
# Relative to the largest number of the result.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 8e-3}
# Tokens, tile, columns, neurons: odd sizes, several tiles, sizes below a register.
SIZES = [(1, 64, 1, 1), (5, 64, 3, 7), (70, 64, 40, 33), (200, 64, 100, 70), (130, 192, 300, 20)]
SHARES = [0.0, 0.02, 0.4, 1.0]


def close(got: Tensor, want: Tensor, dtype: torch.dtype) -> bool:
    scale = max(float(want.abs().max()), 1e-30) if want.numel() else 1.0
    error = (got.double() - want.double()).abs().max() if want.numel() else torch.zeros(())
    return bool(error <= TOLERANCE[dtype] * scale)


def dense(pairs: kernels.Pairs, values: Tensor) -> Tensor:
    """Numbers of pairs as a matrix [tokens, neurons]."""
    out = torch.zeros(pairs.batch, pairs.neurons, dtype=torch.float64)
    rows = torch.arange(len(pairs.indptr) - 1).repeat_interleave(pairs.indptr.diff())
    out[pairs.tokens.long(), rows % pairs.neurons] = values.double()
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_products_at_pairs(size: tuple[int, ...], dtype: torch.dtype, isa: str) -> None:
    backend.use_isa(isa)
    tokens, tile, d, neurons = size
    for share in SHARES:
        live = torch.rand(tokens, neurons) < share
        pairs = pairs_of(live, tile)
        x, dy = (torch.randn(tokens, d, dtype=torch.float64).to(dtype) for _ in range(2))
        w, w2 = (torch.randn(neurons, d, dtype=torch.float64).to(dtype) for _ in range(2))
        sums = kernels.sums_dtype(dtype)
        a, b, c = (torch.randn(pairs.nnz, dtype=sums) for _ in range(3))
        bias = torch.randn(neurons, dtype=sums)
        x64, dy64, w64, w264 = x.double(), dy.double(), w.double(), w2.double()

        exact = TOLERANCE[dtype] if dtype != torch.bfloat16 else 2e-6  # these stay float32
        got = dense(pairs, kernels.sample(pairs, x, w, bias))
        want = (x64 @ w64.t() + bias.double()) * live
        assert (got - want).abs().max() <= exact * 30 * d**0.5

        assert close(kernels.scatter(pairs, w, a), dense(pairs, a) @ w64, dtype)
        both = dense(pairs, a) @ w64 + dense(pairs, b) @ w264
        assert close(kernels.scatter(pairs, w, a, w2, b), both, dtype)

        first, second, third = (torch.full_like(w, torch.nan) for _ in range(3))
        kernels.accumulate(pairs, x, dy, a, b, c, (first, second, third))
        assert close(first, dense(pairs, a).t() @ x64, dtype)
        assert close(second, dense(pairs, b).t() @ x64, dtype)
        assert close(third, dense(pairs, c).t() @ dy64, dtype)
        again = [torch.full_like(w, torch.nan) for _ in range(2)]
        kernels.accumulate(pairs, x, dy, a, None, c, (again[0], None, again[1]))
        assert torch.equal(again[0], first)
        assert torch.equal(again[1], third)

        assert close(kernels.sum_neurons(pairs, a), dense(pairs, a).sum(0), sums)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_live_pairs_of_a_gate(dtype: torch.dtype, isa: str) -> None:
    backend.use_isa(isa)
    for tokens in (1, 63, 64, 65, 300):
        gate = torch.randn(40, tokens).to(dtype)
        gate[3] = -1.0
        gate[4] = 0.0
        gate[5] = -0.0
        gate[6, tokens // 2] = torch.nan
        gate[7] = -torch.inf
        gate[8] = torch.inf
        live = ~((gate <= 0) & (gate > -torch.inf))
        indptr = torch.zeros(41, dtype=torch.int64)
        indptr[0] = 5  # what was found before
        ids = torch.full((4 * gate.numel() + 5,), -1, dtype=torch.int32)
        values = torch.zeros(len(ids), dtype=kernels.sums_dtype(dtype))
        end = kernels.compact(gate, 7, indptr, ids, values)
        assert end == 5 + int(live.sum())
        assert torch.equal(indptr.diff(), live.sum(1))
        assert torch.equal(ids[5:end].long(), live.nonzero()[:, 1] + 7)
        assert torch.equal(values[5:end], gate[live].to(values.dtype)) or bool(
            values[5:end].isnan().any()
        )
        assert ids[:5].eq(-1).all()
        assert ids[end:].eq(-1).all()
        few = torch.full((9,), -1, dtype=torch.int32)
        assert kernels.compact(gate, 7, indptr, few, values[:9].clone()) == end
        assert few.eq(-1).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_to_int8_bounds_its_error(dtype: torch.dtype, isa: str) -> None:
    backend.use_isa(isa)
    for d in (1, 3, 4, 63, 130):
        w = torch.randn(9, d).to(dtype)
        w[1] = 0
        w[2] *= 1e-13
        w[3] *= 1e15
        rows = kernels.quantize_rows(w)
        q = rows.q.view(torch.int8).double()
        scale, norm, rounded, error = rows.stats.double().unbind(1)
        assert torch.equal(rows.sums.double(), q.sum(1))
        assert q[:, d:].eq(0).all()
        near = scale[:, None] * q[:, :d]
        assert ((near - w.double()).abs() <= 0.5001 * scale[:, None]).all()
        expected = (w.double().norm(dim=1), near.norm(dim=1), (near - w.double()).norm(dim=1))
        for got, want in zip((norm, rounded, error), expected, strict=True):
            # The rounding of float32, which the margin of the bound covers (2^-20 of the norms).
            assert ((got - want).abs() <= 1e-5 * want + 2e-7 * expected[0]).all()
    wild = torch.randn(5, 10).to(dtype)
    wild[0, 3], wild[1, 3], wild[2, 3] = torch.nan, torch.inf, 1e30
    wild[3] *= 1e-20  # its squares are zero in float32
    rows = kernels.quantize_rows(wild)
    assert rows.stats[:4, 3].isinf().all()
    assert rows.q[:4].eq(0).all()
    assert rows.stats[4].isfinite().all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_rounded_as_rows_are_and_packed(dtype: torch.dtype, isa: str) -> None:
    backend.use_isa(isa)
    for count, d in [(1, 1), (70, 7), (64, 130)]:
        x = torch.randn(count, d).to(dtype)
        rows, tokens = kernels.quantize_rows(x), kernels.quantize_tokens(x)
        blocks = len(tokens.q)
        q = tokens.q.view(blocks, -1, 64, 4).transpose(1, 2).reshape(64 * blocks, -1)
        assert torch.equal(q[:count] ^ 128, rows.q)
        assert q[count:].eq(128).all()  # zeros, with 128 added
        assert torch.equal(tokens.stats[:, :count], rows.stats.t()[[0, 2, 3]])
        assert tokens.stats[:, count:].eq(0).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_screen_loses_no_pair(with_bias: bool, dtype: torch.dtype, isa: str) -> None:
    backend.use_isa(isa)
    for tokens, d, hidden, share in [(1, 5, 3, 0.5), (70, 64, 50, 0.02), (200, 130, 61, 0.1)]:
        x, weights = make(tokens, d, hidden, share, skew=True, dtype=dtype)
        bias = 0.3 * torch.randn(hidden) if with_bias else None
        exact = x.double() @ weights.gate.double().t()
        exact = exact if bias is None else exact + bias
        live = int8_gate(x, weights.gate, bias)
        found = mask_of(live.pairs)
        # float32 may round a gate next to 0 either way.
        sure = exact.abs() > 1e-5
        assert torch.equal(found & sure, (exact > 0) & sure)
        assert live.pairs.nnz <= live.screened <= tokens * hidden
        assert ((dense(live.pairs, live.values) - exact)[found].abs() < 1e-4).all()


@pytest.mark.parametrize("isa", ISAS)
def test_the_screen_is_exact_where_rounding_is(isa: str) -> None:
    backend.use_isa(isa)
    x, gate = torch.randint(-9, 10, (130, 70)).float(), torch.randint(-9, 10, (50, 70)).float()
    x[:, 0] = gate[:, 1] = 127.0  # so that all scales are 1
    bias = torch.randint(-500, 500, (50,)).float()
    wanted = x @ gate.t() + bias
    live = int8_gate(x, gate, bias)
    assert live.screened == int((wanted >= 0).sum())
    assert torch.equal(mask_of(live.pairs), wanted > 0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rounded", ["x", "gate"])
def test_each_part_of_the_bound_keeps_a_pair(rounded: str, isa: str) -> None:
    """The gate is positive, its rounded form is not, and all of the error is that of one factor."""
    backend.use_isa(isa)
    signs = torch.randint(0, 2, (62,)) * 2.0 - 1.0
    exact = 127.0 * torch.cat([torch.ones(2), signs])
    near = torch.cat([torch.tensor([127.0, -127.0]), 0.4 * signs])  # 0.4 becomes 0
    near[2:14] -= signs[:12]  # and -0.6 becomes -1
    x, gate = (near, exact) if rounded == "x" else (exact, near)
    live = int8_gate(x.repeat(70, 1), gate.repeat(9, 1), None)
    assert live.pairs.nnz == live.screened == 70 * 9


@pytest.mark.parametrize("isa", ISAS)
def test_the_screen_is_not_the_whole_matrix(isa: str) -> None:
    backend.use_isa(isa)
    x, weights = make(256, 256, 128, 0.02, dtype=torch.float32)
    assert int8_gate(x, weights.gate, None).screened < 0.15 * 256 * 128


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_not_finite_is_kept(isa: str) -> None:
    backend.use_isa(isa)
    x, weights = make(70, 40, 30, 0.02, dtype=torch.float32)
    x[3, 5], x[64, 0] = torch.nan, torch.inf
    gate = weights.gate
    gate[7, 2] = torch.nan
    wanted = x @ gate.t()
    wanted = ~((wanted <= 0) & (wanted > -torch.inf))
    for live in (float_gate(x, gate, None), int8_gate(x, gate, None)):
        found = mask_of(live.pairs)
        assert found[3].all()
        assert found[:, 7].all()
        assert torch.equal(found[64], wanted[64])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    x, weights = make(900, 520, 640, 0.05, skew=True, dtype=dtype)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        live = mask_of(pairs_of(torch.zeros(900, 640, dtype=torch.bool), 512))
        torch.manual_seed(1)
        live = torch.rand(900, 640) < 0.05
        pairs = pairs_of(live, 512)
        a, b, c = (torch.randn(pairs.nnz, dtype=kernels.sums_dtype(dtype)) for _ in range(3))
        out = [torch.empty_like(weights.gate) for _ in range(3)]
        assert weights.up is not None
        kernels.accumulate(pairs, x, x, a, b, c, (out[0], out[1], out[2]))
        results.append(
            [
                kernels.sample(pairs, x, weights.up),
                kernels.scatter(pairs, weights.up, a, weights.down, b),
                kernels.scatter(pairs, weights.up, a),
                kernels.sum_neurons(pairs, a),
                *out,
            ]
        )
        if dtype != torch.float64:
            screened = int8_gate(x, weights.gate, None)
            results[-1] += [screened.pairs.indptr, screened.pairs.tokens, screened.values]
    for others in results[1:]:
        assert all(torch.equal(p, q) for p, q in zip(results[0], others, strict=True))


def test_bad_pairs_are_refused() -> None:
    x, weights = make(20, 8, 6, 0.5, dtype=torch.float32)
    pairs = pairs_of(torch.rand(20, 6) < 0.5, 64)
    high, same, low = pairs.tokens.clone(), pairs.tokens.clone(), pairs.tokens.clone()
    high[-1], low[0] = 20, -1
    same[1] = same[0]
    steps = pairs.indptr.clone()
    steps[2], steps[3] = steps[3] + 1, steps[2]
    cases: list[tuple[kernels.Pairs, type[GossamerError]]] = [
        (pairs._replace(tokens=high), StructureError),
        (pairs._replace(tokens=low), StructureError),
        (pairs._replace(tokens=same), StructureError),
        (pairs._replace(indptr=steps), StructureError),
        (pairs._replace(indptr=pairs.indptr + 1), StructureError),
        (pairs._replace(indptr=pairs.indptr[:-1]), ShapeError),
        (pairs._replace(tokens=pairs.tokens.long()), DTypeError),
        (pairs._replace(batch=19), GossamerError),
        (pairs._replace(neurons=0), ShapeError),
        (pairs._replace(tile=0), ShapeError),
    ]
    for bad, error in cases:
        with pytest.raises(error):
            kernels.sample(bad, x, weights.gate)
    for wrong in (x.double(), x[:, :7].contiguous(), x.t().contiguous(), x.t()):
        with pytest.raises(GossamerError):
            kernels.sample(pairs, wrong, weights.gate)
    with pytest.raises(DTypeError, match="int8 gate"):
        kernels.quantize_rows(weights.gate.double())
