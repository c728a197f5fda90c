"""What the registry of patterns refuses, and what broken selections, scores and kernels raise."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer.errors import DTypeError, PatternError
from gossamer.patterns import (
    NM,
    Pattern,
    register_operator,
    register_pattern,
    register_sparsifier,
    registry,
)
from support import stranger
from support.recipe_course import Course, bits

pytestmark = pytest.mark.usefixtures("one_thread")


def kind(name: str, frozen: bool = True, base: type = Pattern, **members: Any) -> Any:
    def text(self: Any) -> str:
        return name

    given = {
        "__str__": text,
        "check_shape": lambda self, rows, cols, who="weight": None,
        "count": lambda self, rows, cols: rows,
        "__module__": __name__,
        **members,
    }
    given = {key: value for key, value in given.items() if value is not None}
    return dataclass(frozen=frozen)(type(name, (base,), given))


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (lambda: 3, DTypeError, "extends"),
        (lambda: int, DTypeError, "extends"),
        (lambda: kind("Loose", frozen=False), PatternError, "frozen"),
        (lambda: kind("Half", count=None), PatternError, "lacks count"),
        (lambda: kind("Mine", base=NM), PatternError, "extends a registered pattern"),
        (lambda: kind("Unstructured"), PatternError, "of this name"),
    ],
)
def test_a_class_that_files_could_not_name_is_refused(given: Any, error: Any, words: str) -> None:
    before = dict(registry._KINDS)
    with pytest.raises(error, match=words):
        register_pattern(given())
    assert before == registry._KINDS


def test_an_unregistered_pattern_is_refused_everywhere() -> None:
    own = kind("Nobody")()
    linear = nn.Linear(8, 8)
    for call in (
        lambda: gossamer.parse_pattern(own),
        lambda: gossamer.sparsify(nn.Sequential(linear), own),
        lambda: gossamer.SparseLinear(8, 8, pattern=own),
        lambda: gossamer.recipes.SET(own),
        lambda: register_sparsifier(type(own), lambda score, pattern: score),
        lambda: register_operator(type(own), "spmm", lambda x, weight: x),
    ):
        with pytest.raises(PatternError, match="not registered"):
            call()


def test_functions_and_names_are_checked() -> None:
    for call in (
        lambda: register_sparsifier(stranger.Tiled, 3),  # type: ignore[call-overload]
        lambda: register_sparsifier("mine", None)(3),  # type: ignore[call-overload]
        lambda: register_operator(stranger.Tiled, "spmm", 3),  # type: ignore[call-overload]
        lambda: register_sparsifier(3, print),  # type: ignore[call-overload]
    ):
        with pytest.raises(DTypeError):
            call()
    with pytest.raises(PatternError, match="spmm, spmm_t or sddmm"):
        register_operator(stranger.Tiled, "matmul", print)  # type: ignore[call-overload]
    with pytest.raises(PatternError, match="rename"):
        register_sparsifier("magnitude", lambda name, weight: weight)
    with pytest.raises(PatternError, match="has no selection"):
        gossamer.masks.magnitude_mask(torch.ones(8, 8), register_pattern(kind("Bare"))())
    with pytest.raises(PatternError, match="no sparsity of its own"):
        _ = stranger.band().Band(4, 16).density


def test_a_class_that_is_defined_again_replaces_itself() -> None:
    first, second = (register_pattern(kind("Again")) for _ in range(2))
    assert first is not second
    with pytest.raises(PatternError, match="not registered"):
        gossamer.parse_pattern(first())
    assert gossamer.parse_pattern(second()) == second()


@pytest.fixture
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A selection of `Tiled` that breaks its contract."""
    monkeypatch.setitem(registry._SELECTIONS, stranger.Tiled, stranger.WRONG[request.param])
    return str(request.param)


@pytest.mark.parametrize("broken", list(stranger.WRONG), indirect=True)
def test_a_wrong_mask_is_one_clear_error_and_changes_nothing(broken: str) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    before, layers = bits(dense.state_dict()), list(dense)
    with pytest.raises(gossamer.GossamerError, match="tiled 8"):
        gossamer.sparsify(dense, "tiled 8")
    assert bits(dense.state_dict()) == before
    assert list(dense) == layers
    for call in (
        lambda: gossamer.masks.random_mask((32, 32), "tiled 8"),
        lambda: gossamer.recipes.STE("tiled 8").prepare(dense),
    ):
        if broken != "others each time":  # each of its masks has the right count
            with pytest.raises(PatternError, match="the selection of pattern tiled 8"):
                call()
    assert bits(dense.state_dict()) == before


@pytest.mark.parametrize("name", ["set", "rigl"])
@pytest.mark.parametrize("wrong", ["raises", "too few", "shape", "others each time"])
def test_a_move_that_fails_leaves_all_masks(
    name: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Course(name, pattern="tiled 8", every=2)
    run.step(0)
    run.step(1)
    masks = [layer.weight.mask() for layer in run.model if hasattr(layer, "pattern")]
    calls = 0

    def late(score: Tensor, pattern: Any) -> Tensor:
        """Fail in the second layer only."""
        nonlocal calls
        calls += 1
        if calls > 2:
            return stranger.WRONG[wrong](score, pattern)  # type: ignore[no-any-return]
        return stranger.best_halves(score, pattern)

    monkeypatch.setitem(registry._SELECTIONS, stranger.Tiled, late)
    with pytest.raises(gossamer.GossamerError, match="tiled 8"):
        run.step(2)
    monkeypatch.setitem(registry._SELECTIONS, stranger.Tiled, stranger.best_halves)
    now = [layer.weight.mask() for layer in run.model if hasattr(layer, "pattern")]
    assert all(torch.equal(a, b) for a, b in zip(masks, now, strict=True))


def test_a_score_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_SCORES", {})
    register_sparsifier("signed")(lambda name, weight: weight)
    linear = nn.Linear(16, 8)
    dense = linear.weight.detach().clone()
    layer = gossamer.sparsify(linear, "2:4", score="signed")
    assert torch.equal(layer.weight.mask(), gossamer.masks.mask_from_score(dense, "2:4"))
    with pytest.raises(PatternError, match="register_sparsifier"):
        gossamer.sparsify(nn.Linear(16, 8), "2:4", score="unsigned")


# ---- kernels -----------------------------------------------------------------------------------


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Own kernels of `Tiled`, and the list of their calls."""
    monkeypatch.setattr(registry, "OPERATORS", registry.OPERATORS)
    calls: list[str] = []

    def spmm(x: Tensor, weight: gossamer.SparseWeight) -> Tensor:
        calls.append("spmm")
        return x @ weight.to_dense().t()

    def spmm_t(g: Tensor, weight: gossamer.SparseWeight) -> Tensor:
        calls.append("spmm_t")
        return g @ weight.to_dense()

    def sddmm(g: Tensor, x: Tensor, weight: gossamer.SparseWeight) -> Tensor:
        calls.append("sddmm")
        dense = g.reshape(-1, g.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
        return dense.flatten()[gossamer.backend.coordinates(weight.structure)]

    for function in (spmm, spmm_t, sddmm):
        verb: Any = function.__name__
        register_operator(stranger.Tiled, verb)(function)
    return calls


@pytest.fixture(autouse=True)
def forget() -> Any:
    yield
    registry.OPERATORS.clear()


def test_own_kernels_serve_their_pattern_alone(kernels: list[str]) -> None:
    torch.manual_seed(0)
    weight = gossamer.SparseWeight.from_dense(torch.randn(16, 32), "tiled 8")
    plain = gossamer.SparseWeight.from_dense(weight.to_dense().detach(), "50%:v8")
    x, g, bias = torch.randn(2, 3, 32, requires_grad=True), torch.randn(2, 3, 16), torch.randn(16)
    results = []
    for one in (weight, plain):
        x.grad = None
        y = gossamer.spmm(x, one, bias)
        y.backward(g)
        results.append(
            [y, x.grad, one.values.grad, gossamer.spmm_t(g, one), gossamer.sddmm(g, x, one)]
        )
    assert kernels == ["spmm", "spmm_t", "sddmm", "spmm_t", "sddmm"]
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other)
    array = x.detach().numpy()
    assert gossamer.spmm(array, weight).shape == (2, 3, 16)


@pytest.mark.parametrize("missing", [(), ("spmm",), ("spmm_t",), ("sddmm",), ("spmm", "sddmm")])
@pytest.mark.parametrize("turned", [False, True])
def test_gradients_are_own_kernels_or_those_of_panels(
    kernels: list[str], missing: tuple[str, ...], turned: bool
) -> None:
    for verb in missing:
        registry.OPERATORS.pop((stranger.Tiled, verb))
    torch.manual_seed(0)
    weight = gossamer.SparseWeight.from_dense(torch.randn(16, 32, dtype=torch.float64), "tiled 8")
    x = torch.randn(3, 16 if turned else 32, dtype=torch.float64, requires_grad=True)
    dense = weight.to_dense().detach().requires_grad_()
    y = (gossamer.spmm_t if turned else gossamer.spmm)(x, weight)
    expected = x @ (dense if turned else dense.t())
    g = torch.randn_like(y).requires_grad_()
    got = torch.autograd.grad(y, [x, weight.values], g, create_graph=True)
    want = torch.autograd.grad(expected, [x, dense], g, create_graph=True)
    called = ["spmm_t", "spmm"] if turned else ["spmm", "spmm_t"]
    assert kernels == [verb for verb in (*called, "sddmm") if verb not in missing]
    torch.testing.assert_close((y, got[0]), (expected, want[0]))
    torch.testing.assert_close(got[1], gossamer.backend.gather(want[1], weight.structure))
    # The gradients are differentiable too.
    kept = weight.mask()
    again = torch.autograd.grad(
        got[0].square().sum() + got[1].square().sum(), [x, weight.values, g]
    )
    second = want[0].square().sum() + (want[1] * kept).square().sum()
    of_x, of_dense, of_g = torch.autograd.grad(second, [x, dense, g])
    torch.testing.assert_close((again[0], again[2]), (of_x, of_g))
    torch.testing.assert_close(again[1], gossamer.backend.gather(of_dense, weight.structure))


def test_own_gradients_use_the_values_of_the_forward_pass(kernels: list[str]) -> None:
    layer = gossamer.SparseLinear(32, 16, bias=False, pattern="tiled 8")
    x = torch.randn(3, 32, requires_grad=True)
    held = layer.weight.values
    other = torch.randn_like(held).requires_grad_()
    y = torch.func.functional_call(layer, {"weight.values": other}, (x,))
    of_x, of_other = torch.autograd.grad(y.sum(), [x, other])
    assert layer.weight.values is held
    assert kernels == ["spmm", "spmm_t", "sddmm"]
    with torch.no_grad():
        held.copy_(other)
    dense = layer.weight.to_dense().detach()
    torch.testing.assert_close(of_x, dense.sum(0).expand(3, 32))
    assert of_other.shape == other.shape
    y = layer(x)
    with torch.no_grad():
        held.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own imports
@pytest.mark.parametrize("how", ["autocast", "transform", "forward mode", "array", "recorded"])
def test_own_kernels_where_autograd_sees_into_them(kernels: list[str], how: str) -> None:
    layer = gossamer.SparseLinear(32, 16, bias=False, pattern="tiled 8")
    dense = layer.weight.to_dense().detach()
    x = torch.randn(3, 32)
    if how == "autocast":
        x.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        y.sum().backward()
        torch.testing.assert_close(x.grad, dense.sum(0).expand(3, 32), rtol=0.1, atol=0.1)
    elif how == "transform":
        grad = torch.func.grad(lambda x: layer(x).sum())(x)
        torch.testing.assert_close(grad, dense.sum(0).expand(3, 32))
    elif how == "forward mode":
        _, tangent = torch.func.jvp(layer, (x,), (torch.ones_like(x),))
        torch.testing.assert_close(tangent, dense.sum(1).expand(3, 16))
    elif how == "array":
        assert gossamer.spmm(x.numpy(), layer.weight).shape == (3, 16)
    else:
        x.requires_grad_()
        layer.requires_grad_(False)
        rows = torch.autograd.grad(layer(x)[0], x, torch.eye(16), is_grads_batched=True)[0]
        torch.testing.assert_close(rows[:, 0], dense)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x, weight: x, "returned .* must return"),
        (lambda x, weight: None, "NoneType"),
        (lambda x, weight: (x @ weight.to_dense().t()).double(), "float64"),
        (lambda x, weight: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_wrong_kernel_is_named(function: Any, words: str) -> None:
    register_operator(stranger.Tiled, "spmm", function)
    layer = gossamer.SparseLinear(32, 16, pattern="tiled 8")
    with pytest.raises(PatternError, match=f"the spmm that is registered.*{words}"):
        layer(torch.randn(3, 32))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own imports
def test_an_own_kernel_is_compiled() -> None:
    layer = gossamer.SparseLinear(32, 16, pattern="tiled 8")
    x = torch.randn(2, 32, requires_grad=True)
    register_operator(
        stranger.Tiled, "spmm", lambda x, weight: 2 * x @ gossamer.ops.expand(weight).t()
    )
    y = torch.compile(layer, fullgraph=True)(x)
    y.sum().backward()
    dense = layer.weight.to_dense()
    torch.testing.assert_close(y, 2 * x @ dense.t() + layer.bias)
    torch.testing.assert_close(x.grad, 2 * dense.sum(0).expand(2, 32))
    assert layer.weight.values.grad is not None
