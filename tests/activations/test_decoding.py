"""A few tokens at a time: the kernels against the formula, the kept int8 gate, and the layer."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer import backend
from gossamer.activations import Options, Weights
from gossamer.activations.decoding import RoundedGate, decode, decoding_costs
from gossamer.backend import activations as kernels
from gossamer.errors import DTypeError, GossamerError, ShapeError
from gossamer.nn import ActivationSparseFFN
from gossamer.optim import ProxAdamW
from tests.support.activation_oracle import make, network, with_biases

ISAS = backend.isas()
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-14, torch.bfloat16: 8e-3}
# Tokens, columns, neurons: sizes below a register and beside whole ones, odd rests of four.
SIZES = [(1, 1, 1), (1, 64, 70), (3, 5, 9), (4, 130, 33), (7, 257, 67), (16, 300, 130)]


def problem(
    size: tuple[int, int, int], share: float, dtype: torch.dtype, biased: bool, gated: bool
) -> tuple[Tensor, Weights]:
    tokens, d, hidden = size
    x, weights = make(max(tokens, 32), d, hidden, share, skew=True, gated=gated, dtype=dtype)
    if biased:
        weights = with_biases(weights, kernels.sums_dtype(dtype))
    return x[:tokens].contiguous(), weights


def double(weights: Weights) -> Weights:
    return Weights(*(None if w is None else w.double() for w in weights))  # type: ignore[arg-type]


def exact_gate(x: Tensor, weights: Weights) -> Tensor:
    gate = x.double() @ weights.gate.double().t()
    return gate if weights.gate_bias is None else gate + weights.gate_bias.double()


def from_gate(gate: Tensor, x: Tensor, weights: Weights, activation: str) -> Tensor:
    """The network by the formula in float64, of a given gate."""
    h = gate.double().relu()
    h = h.square() if activation == "relu2" else h
    if weights.up is not None:
        h = h * F.linear(x.double(), weights.up, weights.up_bias)
    y = h @ weights.down
    return y if weights.down_bias is None else y + weights.down_bias


def close(got: Tensor, want: Tensor, dtype: torch.dtype) -> bool:
    scale = max(float(want.abs().max()), 1e-30)
    return bool((got.double() - want).abs().max() <= TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_the_formula(size: tuple[int, int, int], dtype: torch.dtype, isa: str) -> None:
    backend.use_isa(isa)
    options = itertools.product([0.0, 0.1, 1.0], [False, True], [False, True], ["relu", "relu2"])
    for share, biased, gated, activation in options:
        x, weights = problem(size, share, dtype, biased, gated)
        how = Options(activation)  # type: ignore[arg-type]
        gate = exact_gate(x, weights)

        y, live, screened = decode(x, weights, how, None)
        bias = weights.gate_bias
        given = F.linear(x, weights.gate, bias if bias is None else bias.to(dtype))
        assert y.dtype == dtype
        assert close(y, from_gate(given, x, double(weights), activation), dtype)
        assert live == int((given > 0).sum())
        assert screened == 0
        if dtype == torch.float64:
            continue
        wanted, _ = network(x.double(), double(weights), gate > 0, activation)
        rows = kernels.quantize_rows(weights.gate)
        y, live, screened = decode(x, weights, how, rows)
        assert close(y, wanted, dtype)
        # float32 may round a gate next to 0 either way.
        assert abs(live - int((gate > 0).sum())) <= int((gate.abs() < 1e-5).sum())
        assert live <= screened <= gate.numel()


@pytest.mark.parametrize("isa", ISAS)
def test_the_screen_is_exact_where_rounding_is(isa: str) -> None:
    backend.use_isa(isa)
    x, gate = torch.randint(-9, 10, (13, 70)).float(), torch.randint(-9, 10, (50, 70)).float()
    x[:, 0] = gate[:, 1] = 127.0  # so that all scales are 1
    bias = torch.randint(-500, 500, (50,)).float()
    wanted = x @ gate.t() + bias
    weights = Weights(gate, None, torch.randn(50, 70), bias)
    _, live, screened = decode(x, weights, Options(), kernels.quantize_rows(gate))
    assert screened == int((wanted >= 0).sum())
    assert live == int((wanted > 0).sum())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rounded", ["x", "gate"])
@pytest.mark.parametrize("tokens", [1, 4])
def test_each_part_of_the_bound_keeps_a_pair(tokens: int, rounded: str, isa: str) -> None:
    """The gate is positive, its rounded form is not, and all of the error is that of one factor."""
    backend.use_isa(isa)
    signs = torch.randint(0, 2, (62,)) * 2.0 - 1.0
    exact = 127.0 * torch.cat([torch.ones(2), signs])
    near = torch.cat([torch.tensor([127.0, -127.0]), 0.4 * signs])  # 0.4 becomes 0
    near[2:14] -= signs[:12]  # and -0.6 becomes -1
    x, gate = (near, exact) if rounded == "x" else (exact, near)
    gate = gate.repeat(9, 1)
    rows = kernels.quantize_rows(gate)
    _, live, screened = decode(x.repeat(tokens, 1), Weights(gate, None, gate), Options(), rows)
    assert live == screened == tokens * 9


@pytest.mark.parametrize("isa", ISAS)
def test_the_screen_is_not_the_whole_matrix(isa: str) -> None:
    backend.use_isa(isa)
    x, weights = make(256, 256, 128, 0.02, dtype=torch.float32)
    rows = kernels.quantize_rows(weights.gate)
    parts = [decode(part, weights, Options(), rows) for part in x.split(16)]
    assert sum(screened for _, _, screened in parts) < 0.15 * 256 * 128


@pytest.mark.parametrize("isa", ISAS)
def test_not_finite_as_torch(isa: str) -> None:
    backend.use_isa(isa)
    x, weights = problem((5, 40, 30), 0.1, torch.float32, True, True)
    x[1, 5], x[2, 0], x[3, 1] = torch.nan, torch.inf, -torch.inf
    weights.gate[7, 2] = torch.nan
    layer = ActivationSparseFFN.of_parts(
        Weights(*(torch.nn.Parameter(w) for w in weights if w is not None)), gate="dense"
    )
    wanted = layer(x).detach()
    for rows in (None, kernels.quantize_rows(weights.gate)):
        y, _, _ = decode(x, weights, Options(), rows)
        torch.testing.assert_close(y, wanted, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    x, weights = problem((16, 700, 900), 0.2, dtype, True, True)
    found = []
    gates = [F.linear(x, weights.gate)]
    gates += [] if dtype == torch.float64 else [kernels.quantize_rows(weights.gate)]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        biases = tuple(weights[3:])
        found.append([kernels.decode(x, weights[:3], biases, False, g)[0] for g in gates])  # type: ignore[arg-type]
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_bad_arguments_are_refused() -> None:
    x, weights = problem((3, 8, 6), 0.5, torch.float32, False, True)
    gate, rows = torch.randn(3, 6), kernels.quantize_rows(weights.gate)
    none = (None, None, None)
    wrong: list[tuple[type[GossamerError], tuple[object, ...]]] = [
        (ShapeError, (x[:0], weights[:3], none, False, gate[:0])),
        (ShapeError, (x.repeat(6, 1), weights[:3], none, False, rows)),
        (ShapeError, (x, weights[:3], none, False, gate[:, :5].contiguous())),
        (ShapeError, (x, weights[:3], (torch.randn(7), None, None), False, gate)),
        (DTypeError, (x, weights[:3], none, False, gate.double())),
        (ShapeError, (x, weights[:3], none, False, rows._replace(sums=rows.sums[1:]))),
        (ShapeError, (x, (weights.gate, weights.up, weights.down.t()), none, False, gate)),
        (DTypeError, (x.double(), weights[:3], none, False, gate)),
    ]
    for error, arguments in wrong:
        with pytest.raises(error):
            kernels.decode(*arguments)  # type: ignore[arg-type]
    doubles = tuple(None if w is None else w.double() for w in weights[:3])
    with pytest.raises(DTypeError, match="pass dense_gate"):
        kernels.decode(x.double(), doubles, none, False, rows)  # type: ignore[arg-type]


# ---- the kept int8 gate -------------------------------------------------------------------------


def test_rows_are_kept_while_the_weight_is_the_same() -> None:
    rounded, weight = RoundedGate(), torch.nn.Parameter(torch.randn(8, 16))
    rows = rounded.rows_of(weight)
    assert rounded.rows_of(weight) is rows
    with torch.no_grad():
        weight[3, 4] = 100.0
    changed = rounded.rows_of(weight)
    assert changed is not rows
    assert torch.equal(changed.q, kernels.quantize_rows(weight.detach()).q)
    assert rounded.rows_of(torch.nn.Parameter(weight.detach())) is not changed
    rounded.forget()
    assert rounded.rows_of(weight) is not changed


def test_rows_of_what_nobody_counts_are_not_kept() -> None:
    rounded = RoundedGate()
    with torch.inference_mode():
        weight = torch.randn(8, 16)
        first = rounded.rows_of(weight)
        weight.mul_(-1)
        assert not torch.equal(rounded.rows_of(weight).q, first.q)


def test_copies_keep_nothing() -> None:
    rounded, weight = RoundedGate(), torch.randn(8, 16)
    rows = rounded.rows_of(weight)
    for again in (copy.deepcopy(rounded), pickle.loads(pickle.dumps(rounded))):  # noqa: S301
        assert again.rows_of(weight) is not rows


# ---- the layer ----------------------------------------------------------------------------------


def layer_of(form: str, dtype: torch.dtype = torch.float32) -> ActivationSparseFFN:
    layer = ActivationSparseFFN(72, 130, gate=form, bias=True, dtype=dtype).eval()  # type: ignore[arg-type]
    assert layer.gate_bias is not None
    with torch.no_grad():
        layer.gate_bias -= 0.6
    return layer


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("form", ["float32", "int8", "auto"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_layer_decodes(dtype: torch.dtype, form: str, mode: type[torch.no_grad]) -> None:
    layer = layer_of(form, dtype)
    dense = copy.deepcopy(layer)
    dense.gate_form = "dense"
    with mode():
        for shape in [(1, 72), (2, 1, 72), (4, 4, 72), (17, 72), (0, 72), (72,)]:
            x = torch.randn(shape, dtype=dtype)
            rtol = 2e-2 if dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(layer(x), dense(x), rtol=rtol, atol=rtol)
    if form != "auto":
        assert 0.0 < layer.live_share < 0.5
    if form == "int8" and dtype != torch.float64:
        assert layer.live_share <= layer.screened_share < 1.0


def test_a_weight_that_changes_is_rounded_again() -> None:
    layer = layer_of("int8")
    x = torch.randn(2, 72)
    optimizer = ProxAdamW(layer.parameters(), lr=0.5)
    for _ in range(3):
        dense = copy.deepcopy(layer)
        dense.gate_form = "dense"
        with torch.no_grad():
            torch.testing.assert_close(layer(x), dense(x), rtol=1e-4, atol=1e-4)
        layer(torch.randn(40, 72)).square().sum().backward()
        optimizer.step()


def test_a_loaded_state_is_rounded_again() -> None:
    layer, other = layer_of("int8"), layer_of("int8")
    x = torch.randn(1, 72)
    with torch.no_grad():
        assert not torch.equal(layer(x), other(x))
        layer.load_state_dict(other.state_dict())
        assert torch.equal(layer(x), other(x))


@pytest.mark.slow
def test_a_compiled_layer_decodes() -> None:
    torch.compiler.reset()
    layer = layer_of("int8")
    run = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    dense = copy.deepcopy(layer)
    dense.gate_form = "dense"
    with torch.no_grad():
        for tokens in (3, 5):
            x = torch.randn(tokens, 72)
            torch.testing.assert_close(run(x), dense(x))
        rows = layer.rounded.rows_of(layer.gate)
        run(x)
        assert layer.rounded.rows_of(layer.gate) is rows
    assert 0.0 < layer.screened_share < 1.0


def test_autocast_does_not_keep_its_casts() -> None:
    layer = layer_of("int8")
    dense = copy.deepcopy(layer)
    dense.gate_form = "dense"
    x = torch.randn(3, 72)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(x), dense(x), rtol=3e-2, atol=3e-2)


def test_a_layer_in_training_counts_its_neurons() -> None:
    layer = layer_of("float32").train()
    with torch.no_grad():
        for _ in range(51):
            layer(-torch.ones(2, 72))
    assert layer.dead_share > 0


def test_auto_takes_the_int8_gate_where_it_is_the_cheapest(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = ActivationSparseFFN(256, 2048).eval()
    found = decoding_costs(1, layer.weights)
    assert found.dense > 0
    from gossamer.nn.layers import activation_calls as calls

    monkeypatch.setattr(
        calls, "decoding_costs", lambda *_: found._replace(int8_gate=0.0, refine=0.0, dense=9.0)
    )
    x, forms = torch.randn(1, 256), []
    with torch.no_grad():
        for _ in range(4):
            layer(x)
            forms.append(layer.form)
    assert forms == ["float32", "int8", "int8", "int8"]
    assert layer.screened_share >= layer.live_share
