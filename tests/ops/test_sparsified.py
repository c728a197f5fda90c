"""Sparsifiers of activations and gradients, against the formula with dense masks."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.library import opcheck

import gossamer
from gossamer.errors import GossamerError, PatternError, ShapeError
from gossamer.masks import magnitude_mask
from gossamer.nn import Sparsifier
from gossamer.ops import sparsified_op, sparsify_tensor
from support import stranger

stranger.band()
PATTERNS = [None, "2:4", "1:4:v4", "75%", "block 2x4 50%", "band 4 of 8"]
SHAPES = {"matrix": ((8, 16), -1), "tokens": ((2, 4, 16), -1), "first": ((16, 2, 4), 0)}
pytestmark = pytest.mark.usefixtures("one_thread")


def formula(x: Tensor, pattern: str | None, dim: int) -> Tensor:
    """x at its largest magnitudes, zero elsewhere."""
    if pattern is None:
        return x
    rows = x.movedim(dim, -1)
    kept = magnitude_mask(rows.reshape(-1, rows.shape[-1]), pattern).reshape(rows.shape)
    return rows.masked_fill(~kept, 0).movedim(-1, dim)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("forward", "backward"), list(itertools.product(PATTERNS, PATTERNS)))
def test_both_directions_keep_what_their_patterns_allow(
    forward: str | None, backward: str | None, shape: str
) -> None:
    torch.manual_seed(0)
    size, dim = SHAPES[shape]
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.randn(size, dtype=dtype, requires_grad=True)
        g = torch.randn(size, dtype=dtype)
        expected = formula(x.detach(), forward, dim)
        pruned = formula(g, backward, dim)
        for straight in (True, False):
            (grad,) = torch.autograd.grad(
                y := sparsify_tensor(x, forward, backward, straight, dim), x, g
            )
            assert torch.equal(y, expected)
            live = torch.ones_like(x) if straight else (expected != 0).to(dtype)
            assert torch.equal(grad, pruned * live)


def test_a_nan_stays_and_a_dropped_one_is_zero() -> None:
    x = torch.tensor([[torch.nan, 1.0, torch.inf, 2.0]], requires_grad=True)
    y = sparsify_tensor(x, "1:4", backward="1:4")
    y.backward(torch.tensor([[1.0, -torch.inf, 0.0, 0.0]]))
    assert y.isnan().tolist() == [[True, False, False, False]]
    assert y[0, 1:].tolist() == [0.0, 0.0, 0.0]
    assert x.grad.tolist() == [[0.0, -torch.inf, 0.0, 0.0]]  # type: ignore[union-attr]


def test_half_precision_and_strides() -> None:
    x = torch.randn(8, 16).half()
    assert torch.equal(sparsify_tensor(x, "2:4"), formula(x, "2:4", -1))
    strided = torch.randn(16, 8).t()
    assert torch.equal(sparsify_tensor(strided, "2:4"), formula(strided, "2:4", -1))


def model(straight: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), Sparsifier("2:4", "1:4", straight), nn.ReLU(), nn.Linear(16, 4)
    )


def test_training_through_it_is_the_formula() -> None:
    mine, x = model(), torch.randn(4, 8)
    mine(x).square().mean().backward()
    h = mine[0](x)
    hidden = formula(h.detach(), "2:4", -1).requires_grad_()
    mine[3](hidden.relu()).square().mean().backward()
    grad = formula(hidden.grad, "1:4", -1)  # type: ignore[arg-type]
    torch.testing.assert_close(mine[0].weight.grad, grad.t() @ x)
    assert "forward=2:4, backward=1:4" in repr(mine)


def test_an_operation_is_wrapped() -> None:
    x, weight = torch.randn(4, 8), torch.randn(16, 8, requires_grad=True)
    linear = sparsified_op(nn.functional.linear, "1:4", backward="2:4")
    y = linear(x, weight)
    assert torch.equal(y, formula(x @ weight.detach().t(), "1:4", -1))
    g = torch.randn(4, 16)
    y.backward(g)
    torch.testing.assert_close(weight.grad, formula(g, "2:4", -1).t() @ x)


@pytest.mark.parametrize("straight", [True, False])
def test_second_derivatives(straight: bool) -> None:
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor) -> Tensor:
        return sparsify_tensor(x, "2:4", None, straight).pow(3).sum()

    if not straight:
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)
    (grad,) = torch.autograd.grad(function(x), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    torch.testing.assert_close(second, 6 * formula(x.detach(), "2:4", -1))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: sparsify_tensor(torch.ones(2, 6), "2:4"), PatternError, "in_features=6"),
        (lambda: sparsify_tensor(torch.ones(2, 4), "2:4", dim=2), ShapeError, "dim=2"),
        (lambda: sparsify_tensor(torch.tensor(1.0), "2:4"), ShapeError, "0 dimensions"),
        (lambda: sparsify_tensor(torch.ones(4), "nonzeros"), PatternError, "nonzeros"),
        (lambda: sparsify_tensor(torch.ones(4).int(), "2:4"), GossamerError, "int32"),
        (lambda: sparsify_tensor([1.0], "2:4"), GossamerError, "Tensor"),  # type: ignore[arg-type]
        (lambda: sparsified_op(3, "2:4"), GossamerError, "function"),  # type: ignore[arg-type]
        (lambda: Sparsifier("2 of 4"), PatternError, "known forms"),
    ],
)
def test_bad_input_says_what_fits(call: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()  # type: ignore[operator]


def test_a_gradient_that_does_not_fit_is_named() -> None:
    x = torch.ones(3, 4, requires_grad=True)
    y = sparsify_tensor(x, None, backward="2:4:v4")
    with pytest.raises(PatternError, match="out_features=3"):
        y.sum().backward()


@pytest.mark.slow
def test_opcheck() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    for forward, backward in (("2:4", "1:4"), (None, "90%"), ("1:2", None)):
        results = opcheck(torch.ops.gossamer.sparsified.default, (x, forward, backward, -1))
        assert set(results.values()) == {"SUCCESS"}
    assert set(opcheck(torch.ops.gossamer.largest.default, (x, "2:4", 1)).values()) == {"SUCCESS"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own imports
@pytest.mark.parametrize("straight", [True, False])
def test_compiled_and_exported(straight: bool) -> None:
    mine, x = model(straight), torch.randn(4, 8)
    expected = mine(x)
    expected.square().sum().backward()
    grads = [p.grad.clone() for p in mine.parameters()]
    mine.zero_grad()
    compiled = torch.compile(mine, fullgraph=True)
    y = compiled(x)
    y.square().sum().backward()
    torch.testing.assert_close(y, expected)
    for parameter, grad in zip(mine.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad)
    program = torch.export.export(mine, (x,))
    torch.testing.assert_close(program.module()(x), expected)


def test_it_stands_beside_sparse_weights() -> None:
    mixed = gossamer.sparsify(model(), "2:4", exclude="3")
    x = torch.randn(4, 8)
    mixed(x).sum().backward()
    assert mixed[0].weight.values.grad is not None
    assert int((mixed[1](mixed[0](x)) != 0).sum()) == 32
