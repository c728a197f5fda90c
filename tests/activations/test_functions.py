"""The sparse feed-forward network and its gradients against float64, and the layer around it."""

import copy
import itertools

import pytest
import torch
from torch import Tensor

from gossamer import backend
from gossamer.activations import (
    Costs,
    GradientMemory,
    Options,
    Weights,
    dense_feed_forward,
    sparse_feed_forward,
)
from gossamer.errors import ArgumentError, DTypeError, GossamerError, ShapeError
from gossamer.nn import ActivationSparseFFN
from tests.support.activation_oracle import make, mask_of, network, with_biases

FORMS = ["float32", "int8"]
TABLES = [isa for isa in backend.isas() if isa != "reference"]


def leaves_of(x: Tensor, weights: Weights, dtype: torch.dtype) -> tuple[Tensor, Weights]:
    def leaf(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.detach().to(dtype).requires_grad_()

    return leaf(x), Weights(*(leaf(w) for w in weights))  # type: ignore[return-value, arg-type]


def gradients(y: Tensor, dy: Tensor, x: Tensor, weights: Weights) -> list[Tensor]:
    wanted = [x, *(w for w in weights if w is not None)]
    return list(torch.autograd.grad(y, wanted, dy))


@pytest.mark.parametrize("isa", TABLES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("gated", "biased"), [*itertools.product([True, False], repeat=2)])
@pytest.mark.parametrize("share", [0.0, 0.003, 0.05, 0.5, 1.0])
def test_gradients(share: float, gated: bool, biased: bool, form: str, isa: str) -> None:
    backend.use_isa(isa)
    for tokens, d, hidden, skew in [(100, 72, 130, False), (1100, 40, 60, True)]:
        x, weights = make(tokens, d, hidden, share, skew, gated)
        if biased:
            weights = with_biases(weights, torch.float64)
        x[3] = 0.0  # without a bias no gate of this token is alive
        dy, penalty = torch.randn(tokens, d), 0.3
        x32, w32 = leaves_of(x, weights, torch.float32)
        options = Options(gate=form, penalty=penalty)  # type: ignore[arg-type]
        y, counts = sparse_feed_forward(x32, w32, options)
        live = mask_of(counts.pairs)
        got = [y, *gradients(y, dy, x32, w32)]

        x64, w64 = leaves_of(x32.detach(), w32, torch.float64)
        y64, h64 = network(x64, w64, live)
        loss = (y64 * dy.double()).sum() + penalty * h64.abs().sum() / tokens
        want = [y64, *gradients(loss, torch.ones((), dtype=torch.float64), x64, w64)]
        for a, b in zip(got, want, strict=True):
            assert (a.double() - b).norm() <= 3e-6 * b.norm() + 1e-12
        # The pairs are those of the exact gate, up to the rounding of what lies next to 0.
        gate = x64 @ w64.gate.t() + (0 if w64.gate_bias is None else w64.gate_bias)
        sure = gate.abs() > 1e-5
        assert torch.equal(live & sure, (gate > 0) & sure)


@pytest.mark.parametrize("activation", ["relu", "relu2"])
@pytest.mark.parametrize("gated", [True, False])
def test_gradcheck(gated: bool, activation: str) -> None:
    x, weights = make(9, 6, 7, 0.4, gated=gated)
    weights = with_biases(weights, torch.float64)
    x, weights = leaves_of(x, weights, torch.float64)
    present = [i for i, w in enumerate(weights) if w is not None]

    def call(x: Tensor, *some: Tensor) -> Tensor:
        parts: list[Tensor | None] = [None] * 6
        for i, w in zip(present, some, strict=True):
            parts[i] = w
        return sparse_feed_forward(x, Weights(*parts), Options(activation))[0]  # type: ignore[arg-type]

    inputs = (x, *(weights[i] for i in present))
    assert torch.autograd.gradcheck(call, inputs)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16(form: str) -> None:
    x, weights = make(300, 200, 260, 0.05, skew=True, dtype=torch.bfloat16)
    weights = with_biases(weights, torch.float32)
    dy = torch.randn(300, 200).bfloat16()
    x, *parts = (None if t is None else t.requires_grad_() for t in (x, *weights))
    weights = Weights(*parts)
    y, counts = sparse_feed_forward(x, weights, Options(gate=form))  # type: ignore[arg-type]
    got = [y, *gradients(y, dy, x, weights)]
    x64, w64 = leaves_of(x, weights, torch.float64)
    y64, _ = network(x64, w64, mask_of(counts.pairs))
    want = [y64, *gradients(y64, dy.double(), x64, w64)]
    for a, b in zip(got, want, strict=True):
        assert a.dtype in (torch.bfloat16, torch.float32)
        assert (a.double() - b).norm() <= 6e-3 * b.norm()


def test_not_finite_as_torch() -> None:
    x, weights = make(70, 40, 30, 0.1, dtype=torch.float32)
    x[3, 5], x[10, 0], x[11, 1] = torch.nan, torch.inf, -torch.inf
    dense, _ = dense_feed_forward(x, weights, Options())
    for form in FORMS:
        y, _ = sparse_feed_forward(x, weights, Options(gate=form))  # type: ignore[arg-type]
        torch.testing.assert_close(y, dense, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_a_second_derivative_is_refused() -> None:
    x, weights = make(9, 6, 7, 0.4)
    x.requires_grad_()
    y, _ = sparse_feed_forward(x, weights, Options())
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_only_what_needs_a_gradient_gets_one() -> None:
    x, weights = make(9, 6, 7, 0.4)
    x.requires_grad_()
    y, _ = sparse_feed_forward(x, weights, Options())
    y.sum().backward()  # a gradient of stride 0
    assert x.grad is not None
    assert weights.gate.grad is None
    weights.down.requires_grad_()
    y, _ = sparse_feed_forward(x.detach(), weights, Options())
    y.sum().backward()
    assert weights.down.grad is not None
    assert weights.gate.grad is None


def test_what_is_kept_for_backward() -> None:
    x, weights = make(512, 64, 2048, 0.01, dtype=torch.float32)
    kept: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return t

    x.requires_grad_()
    own = {t.untyped_storage().data_ptr() for t in (x, *weights) if t is not None}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        sparse_feed_forward(x, weights, Options())
    dense = 3 * 512 * 2048 * 4  # g, u and h
    assert sum(size for at, size in kept.items() if at not in own) <= dense / 50


# ---- the layer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_all_forms_of_the_layer_agree(gated: bool, bias: bool) -> None:
    layer = ActivationSparseFFN(48, 96, gated, bias=bias, dtype=torch.float64)
    layer.penalty = 0.5
    x = torch.randn(4, 30, 48, dtype=torch.float64)
    results = {}
    for form in ("dense", "float32", "int8", "auto"):
        layer.gate_form = form  # type: ignore[assignment]
        layer.zero_grad()
        inputs = x.clone().requires_grad_()
        y = layer(inputs)
        y.square().mean().backward()
        results[form] = [y, inputs.grad, *(p.grad for p in layer.parameters())]
    for others in results.values():
        for a, b in zip(results["dense"], others, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_shares() -> None:
    layer = ActivationSparseFFN(32, 64, gate="float32", bias=True)
    assert layer.live_share != layer.live_share
    with torch.no_grad():
        assert layer.gate_bias is not None
        layer.gate_bias[:16] = -100.0
    for _ in range(60):
        layer(torch.randn(128, 32))
    assert layer.dead_share == 0.25
    assert 0.3 < layer.live_share < 0.45
    layer.gate_form = "int8"
    layer(torch.randn(128, 32))
    assert layer.live_share <= layer.screened_share < 0.6


def test_empty_and_other_shapes() -> None:
    layer = ActivationSparseFFN(8, 16, gate="float32")
    layer.penalty = 0.1
    for shape in [(0, 8), (3, 0, 8), (8,), (2, 3, 4, 8)]:
        x = torch.randn(shape, requires_grad=True)
        y = layer(x)
        assert y.shape == x.shape
        y.sum().backward()
        assert x.grad is not None
    with pytest.raises(ShapeError, match="last dimension must be 8"):
        layer(torch.randn(3, 7))
    with pytest.raises(DTypeError, match="convert one"):
        layer(torch.randn(3, 8).double())


def test_autocast_and_its_gradients() -> None:
    layer = ActivationSparseFFN(64, 96, gate="float32", bias=True)
    x = torch.randn(50, 64, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())
    expected = copy.deepcopy(layer)
    expected.gate_form = "dense"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(expected(x), y, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"d": 0},
        {"hidden": -1},
        {"gated": "yes"},
        {"gate": "fp8"},
        {"slack": 2.0},
        {"slack": float("nan")},
        {"activation": "silu"},
        {"bias": 1},
        {"dtype": torch.float16},
    ],
)
def test_bad_arguments(arguments: dict[str, object]) -> None:
    with pytest.raises(GossamerError) as error:
        ActivationSparseFFN(**{"d": 8, "hidden": 16, **arguments})  # type: ignore[arg-type]
    assert isinstance(error.value, ArgumentError | DTypeError)


def test_state_copies_and_pickles() -> None:
    layer = ActivationSparseFFN(8, 16, bias=True)
    layer(torch.randn(5, 8))
    other = copy.deepcopy(layer)
    assert sorted(layer.state_dict()) == [
        "down", "down_bias", "gate", "gate_bias", "up", "up_bias"
    ]  # fmt: skip
    other.load_state_dict(layer.state_dict())
    x = torch.randn(5, 8)
    assert torch.equal(layer(x), other(x))


def test_gradient_memory_comes_back() -> None:
    memory = GradientMemory()
    like = torch.zeros(200, 200)
    first = memory.empty_like(like)
    address = first.data_ptr()
    assert memory.empty_like(like).data_ptr() != address  # in use
    first.fill_(1)
    view = first[3:]
    del first
    assert memory.empty_like(like).data_ptr() != address  # a view holds it
    del view
    other = like.bfloat16().repeat(2, 1)  # as many bytes
    both = [memory.empty_like(other) for _ in range(2)]
    assert address in [tensor.data_ptr() for tensor in both]


def test_gradients_are_taken_over_without_a_copy() -> None:
    layer = ActivationSparseFFN(256, 512, gate="float32")
    addresses = []
    for _ in range(3):
        layer.zero_grad()
        layer(torch.randn(64, 256)).sum().backward()
        assert layer.gate.grad is not None
        addresses.append(
            sorted(p.grad.data_ptr() for p in layer.parameters() if p.grad is not None)
        )
    assert addresses[1] == addresses[2]


def test_outlier_weights_spoil_the_screen_and_the_switch_sees_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One large weight in a row takes the whole int8 scale of the row."""
    from gossamer.nn.layers import activation_calls

    found = []
    for outlier in (0.0, 60.0):
        torch.manual_seed(0)
        x, weights = make(256, 256, 512, 0.02, dtype=torch.float32)
        weights.gate[:, 200] += outlier
        x[:, 200] = 0.0
        parts = (None if w is None else torch.nn.Parameter(w) for w in weights)
        layer = ActivationSparseFFN.of_parts(Weights(*parts))  # type: ignore[arg-type]
        # In seconds: an int8 gate that is the cheapest unless most pairs pass its screen.
        costs = Costs(9.0, 1.0, 0.1, refine=1e-4, fixed=0.0, pair=0.0)
        monkeypatch.setattr(activation_calls, "costs_of", lambda *_, costs=costs: costs)
        dense, _ = dense_feed_forward(x, weights, Options())
        for _ in range(4):
            torch.testing.assert_close(layer(x), dense, rtol=1e-4, atol=1e-4)
        found.append((layer.form, layer.screened_share))
    (good, few), (bad, many) = found
    assert (good, bad) == ("int8", "float32")
    assert few < 0.1
    assert many > 0.9
