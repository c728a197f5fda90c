"""torch.compile of the layers that select a mask while they run: one graph, eager's numbers."""

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import GossamerError
from gossamer.nn import MaskedLinear
from gossamer.nn.layers.bimask import BiMaskLinear
from gossamer.nn.layers.numbered import layer_of
from gossamer.nn.layers.sampled import SampledLinear
from gossamer.nn.layers.soft_threshold import SoftThresholdLinear
from gossamer.nn.layers.threshold import ThresholdLinear
from gossamer.patterns import NM

pytestmark = pytest.mark.slow
ROWS, COLS = 16, 12


def soft(linear: nn.Linear) -> MaskedLinear:
    layer = MaskedLinear.from_dense(linear, "2:4")
    layer.masked_weight_share.fill_(0.25)
    return layer


def scaled(linear: nn.Linear) -> ThresholdLinear:
    layer = ThresholdLinear.from_dense(linear, "75%", initial=None)
    layer.alpha.fill_(0.5)
    return layer


def dense(linear: nn.Linear) -> MaskedLinear:
    layer = MaskedLinear.from_dense(linear, "50%")
    layer.set_dense()
    return layer


KINDS: dict[str, Callable[[nn.Linear], MaskedLinear]] = {
    "reselected 2:4": lambda linear: MaskedLinear.from_dense(linear, "2:4"),
    "fixed 2:4:v4": lambda linear: MaskedLinear.from_dense(linear, "2:4:v4", False),
    "fixed 75%, kept": lambda linear: MaskedLinear.from_dense(linear, "75%", False, "kept"),
    "reselected 75%": lambda linear: MaskedLinear.from_dense(linear, "75%"),
    "soft": soft,
    "dense": dense,
    "thresholds": scaled,
    "soft threshold": lambda linear: SoftThresholdLinear.from_dense(linear, "2:4"),
    "bimask": lambda linear: BiMaskLinear.from_dense(linear, "2:4"),
    "sampled": lambda linear: SampledLinear.from_dense(linear, "2:4", sample=NM(2, 4)),
}


def model(kind: str) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(KINDS[kind](nn.Linear(COLS, ROWS)), nn.GELU(), nn.Linear(ROWS, 4))


def gradients(run: nn.Module, x: Tensor, layer: nn.Module) -> list[Tensor | None]:
    y = run(x)
    wanted = [x, *layer.parameters()]
    return [y, *torch.autograd.grad(y.square().sum(), wanted, allow_unused=True)]


def assert_same(got: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for a, b in zip(got, expected, strict=True):
        if b is None:  # a threshold while the layer is dense
            assert a is None or not a.any()
        else:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_and_eagers_numbers_for_every_batch(kind: str) -> None:
    torch.compiler.reset()
    eager = model(kind)
    own = copy.deepcopy(eager)
    run = torch.compile(own, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5):
        x = torch.randn(3, batch, COLS, requires_grad=True)
        assert_same(gradients(run, x, own), gradients(eager, x, eager))
        with torch.no_grad():  # other masks in the same graph
            for layer in (eager[0], own[0]):
                layer.weight.copy_(layer.weight.flip(1))
    assert torch.equal(eager[0].mask(), own[0].mask())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own imports
def test_inductor() -> None:
    torch.compiler.reset()
    eager = model("thresholds")
    run = torch.compile(eager, fullgraph=True, dynamic=True)
    for batch in (6, 3):
        x = torch.randn(batch, COLS, requires_grad=True)
        assert_same(gradients(run, x, eager), gradients(eager, x, eager))


def test_autocast() -> None:
    torch.compiler.reset()
    layer = model("reselected 2:4")[0]
    x = torch.randn(5, COLS)

    def step(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)

    run = torch.compile(step, fullgraph=True, backend="aot_eager")
    got, expected = run(x), step(x)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, expected)
    (a,), (b,) = (torch.autograd.grad(y.sum(), layer.weight) for y in (got, expected))
    assert a.dtype == torch.float32
    torch.testing.assert_close(a, b)


def test_the_backward_pass_has_the_mask_of_its_forward_pass() -> None:
    torch.compiler.reset()
    layer = model("fixed 2:4:v4")[0]
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, COLS, requires_grad=True)
    y, used = run(x), layer.used_weight()
    layer.set_mask(gossamer.masks.random_mask((ROWS, COLS), "2:4:v4", seed=5))
    assert not torch.equal(used, layer.used_weight())
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, torch.ones(5, ROWS) @ used)
    torch.testing.assert_close(run(x), layer(x))


def test_a_recipe_moves_the_masks_of_a_compiled_model() -> None:
    losses = []
    for compile_it in (False, True):
        torch.compiler.reset()
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(COLS, ROWS), nn.ReLU(), nn.Linear(ROWS, 4))
        recipe = gossamer.recipes.SRSTE("2:4")
        net = recipe.prepare(net)
        optimizer = torch.optim.SGD(recipe.parameters(net), lr=0.5)
        recipe.attach(net, optimizer, total_steps=6)
        run = torch.compile(net, fullgraph=True, backend="aot_eager") if compile_it else net
        for _ in range(6):
            x = torch.randn(7, COLS)
            loss = (run(x) - x[:, :4]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_copies_have_numbers_of_their_own_and_numbers_hold_no_layer() -> None:
    layer = model("reselected 2:4")[0]
    copied = copy.deepcopy(layer)
    assert copied.number != layer.number
    number = copied.number
    assert layer_of(number) is copied
    del copied
    gc.collect()
    assert layer_of(number) is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_returns_no_memory_of_the_layers_own(kind: str) -> None:
    layer = model(kind)[0]
    weight, *extra = layer.trained()
    found = torch.ops.gossamer.masked(
        torch.randn(5, COLS), weight, extra[0] if extra else None, layer.bias, layer.number, False,
        layer.product.ints,
    )  # fmt: skip
    own = {t.data_ptr() for t in (*layer.parameters(), *layer.buffers()) if t.numel()}
    assert not own & {t.data_ptr() for t in found if t.numel()}


@pytest.mark.parametrize("strict", [True, False])
def test_export_is_refused_by_name(strict: bool) -> None:
    layer = model("reselected 2:4")
    # In strict mode torch wraps the error, and the layer's name cannot be looked for.
    refusal, name = (Exception, "") if strict else (GossamerError, "0: ")
    with pytest.raises(refusal, match=rf"{name}MaskedLinear.*torch\.export.*densify"):
        torch.export.export(layer, (torch.randn(4, COLS),), strict=strict)
    layer(torch.randn(4, COLS)).sum().backward()


def test_a_wrong_size_is_told() -> None:
    torch.compiler.reset()
    run = torch.compile(model("reselected 2:4"), backend="aot_eager")
    with pytest.raises(Exception, match="its last size must be 12"):
        run(torch.randn(3, COLS + 1))
