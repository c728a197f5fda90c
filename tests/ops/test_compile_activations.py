"""torch.compile of feed-forward networks with sparse activations: one graph, eager's numbers."""

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import gossamer
from gossamer import GossamerError
from gossamer.nn import ActivationSparseFFN
from gossamer.nn.layers.numbered import layer_of

pytestmark = pytest.mark.slow
D, HIDDEN = 12, 40


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()


def network(form: str = "float32", **options: object) -> ActivationSparseFFN:
    torch.manual_seed(3)
    layer = ActivationSparseFFN(D, HIDDEN, gate=form, **options)  # type: ignore[arg-type]
    layer.penalty = 0.3
    return layer


def gradients(run: Callable[[Tensor], Tensor], x: Tensor, model: nn.Module) -> list[Tensor | None]:
    y = run(x)
    wanted = [t for t in (x, *model.parameters()) if t.requires_grad]
    return [y.detach(), *torch.autograd.grad(y.square().sum(), wanted)]


def assert_same(
    got: list[Tensor | None], expected: list[Tensor | None], **tolerance: float
) -> None:
    for a, b in zip(got, expected, strict=True):
        assert a is not None
        assert b is not None
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, **tolerance)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["float32", "int8", "dense", "auto"])
@pytest.mark.parametrize(
    ("gated", "bias", "activation"),
    [(True, False, "relu"), (False, True, "relu"), (True, True, "relu2")],
)
def test_one_graph_and_eagers_numbers_for_every_batch(
    form: str, gated: bool, bias: bool, activation: str
) -> None:
    eager = network(form, gated=gated, bias=bias, activation=activation)
    own = copy.deepcopy(eager)
    counter = CompileCounterWithBackend("aot_eager")
    run = torch.compile(own, fullgraph=True, dynamic=True, backend=counter)
    for batch in (2, 5, 70):
        x = torch.randn(3, batch, D, requires_grad=True)
        assert_same(gradients(run, x, own), gradients(eager, x, eager))
        assert own.live_share == eager.live_share
        assert own.take_counts() == eager.take_counts() != (0, 0)
        eager.penalty, own.penalty = 0.1 * batch, 0.1 * batch  # in the same graph
    assert counter.frame_count == 1
    assert own.form == eager.form
    if form == "int8":
        assert own.screened_share == eager.screened_share > 0


@pytest.mark.parametrize("form", ["float32", "dense"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own imports
def test_inductor(form: str) -> None:
    model = nn.Sequential(nn.LayerNorm(D), network(form, bias=True), nn.Linear(D, D), nn.GELU())
    run = torch.compile(model, fullgraph=True, dynamic=True)
    for batch in (6, 9):
        x = torch.randn(batch, D, requires_grad=True)
        assert_same(gradients(run, x, model), gradients(model, x, model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["float32", "dense"])
def test_autocast(form: str) -> None:
    layer = network(form, bias=True)

    def step(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)

    run = torch.compile(step, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, D, requires_grad=True)
    got, expected = run(x), step(x)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, expected)
    pairs = zip(*(gradients(f, x, layer) for f in (run, step)), strict=True)
    for a, b in pairs:
        assert a is not None
        assert b is not None
        assert a.dtype == b.dtype
        assert (a - b).float().norm() <= 1e-2 * b.float().norm()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_checkpointing(backend: str) -> None:
    layer = network()

    def run(x: Tensor) -> Tensor:
        return checkpoint(layer, x, use_reentrant=False).sin()

    x = torch.randn(7, D, requires_grad=True)
    compiled = torch.compile(run, fullgraph=True, backend=backend)
    assert_same(gradients(compiled, x, layer), gradients(run, x, layer))


def test_only_what_learns_gets_a_gradient() -> None:
    layer = network(bias=True)
    for name in ("up", "gate_bias"):
        getattr(layer, name).requires_grad_(False)
    x = torch.randn(7, D)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_same(gradients(run, x, layer), gradients(layer, x, layer))
    run(x).sum().backward()
    assert layer.up.grad is None
    assert layer.gate_bias.grad is None


@pytest.mark.parametrize("form", ["float32", "dense"])
def test_nothing_is_kept_without_a_backward_pass(form: str) -> None:
    layer = network(form)
    x = torch.randn(70, D)
    call = torch.ops.gossamer.activation_ffn
    with torch.no_grad():
        y, *kept, _ = call(x, *layer.weights, layer.number, "relu", "", False)
        assert not any(t.numel() for t in kept)
        run = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.equal(run(x), y)
        assert torch.equal(layer(x), y)
    y, *kept, _ = call(x, *layer.weights, layer.number, "relu", "", True)
    assert [bool(t.numel()) for t in kept] == [form != "dense"] * 4 + [form == "dense"] * 2 + [
        False
    ]


@pytest.mark.parametrize(("before", "after"), [("float32", "dense"), ("dense", "int8")])
def test_the_backward_pass_is_that_of_its_forward_pass(before: str, after: str) -> None:
    layer = network(before)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, D, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    y = run(x)
    layer.gate_form, layer.penalty = after, 7.0  # type: ignore[assignment]
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(grad, expected)
    (again,) = torch.autograd.grad(run(x).square().sum(), x)
    assert not torch.allclose(again, expected)
    assert layer.form == after


def test_an_empty_batch() -> None:
    layer = network()
    run = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in [(4, D), (0, D), (2, 0, D)]:
        x = torch.randn(shape, requires_grad=True)
        y = run(x)
        y.sum().backward()
        assert y.shape == x.shape
        assert x.grad is not None


def test_equal_blocks_share_one_graph() -> None:
    """As where a long model is compiled block by block."""
    counter = CompileCounterWithBackend("aot_eager")
    blocks = [network() for _ in range(12)]
    x = torch.randn(5, D, requires_grad=True)
    for block in blocks:
        run = torch.compile(block, fullgraph=True, backend=counter)
        assert_same(gradients(run, x, block), gradients(block, x, block))
    assert counter.frame_count == 1
    assert len({int(block.number) for block in blocks}) == 12


def test_a_recipe_controls_a_compiled_model() -> None:
    losses, shares = [], []
    for compile_it in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(D, D), network(), nn.Linear(D, 4))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        recipe = gossamer.recipes.ActivationL1(target_share=0.05, begin_share=0.0)
        recipe.attach(net, optimizer, total_steps=20)
        run = torch.compile(net, fullgraph=True, backend="aot_eager") if compile_it else net
        for _ in range(20):
            x = torch.randn(37, D)
            loss = (run(x) - x[:, :4]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
        shares.append(recipe.live_share)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert shares[0] == pytest.approx(shares[1], rel=1e-2)
    assert shares[0] < 0.4


def test_copies_have_numbers_of_their_own_and_numbers_hold_no_layer() -> None:
    layer = network()
    copied = copy.deepcopy(layer)
    number = copied.number
    assert number != layer.number
    assert layer_of(number) is copied
    del copied
    gc.collect()
    assert layer_of(number) is None


def test_a_layer_may_go_before_its_backward_pass() -> None:
    layer = network()
    x = torch.randn(5, D, requires_grad=True)
    weights = [w.detach() for w in layer.weights[:3] if w is not None]
    call = torch.ops.gossamer.activation_ffn
    y = call(x, *weights, None, None, None, layer.number, "relu", "", True)[0]
    (expected,) = torch.autograd.grad(layer(x).sum(), x)
    del layer
    gc.collect()
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("strict", [True, False])
def test_export_is_refused_by_name(strict: bool) -> None:
    model = nn.Sequential(network())
    # In strict mode torch wraps the error, and the layer's name cannot be looked for.
    refusal, name = (Exception, "") if strict else (GossamerError, "0: ")
    with pytest.raises(refusal, match=rf"{name}ActivationSparseFFN.*torch\.export.*densify"):
        torch.export.export(model, (torch.randn(4, D),), strict=strict)
    model(torch.randn(4, D)).sum().backward()


def test_a_wrong_size_is_told() -> None:
    run = torch.compile(network(), backend="aot_eager")
    with pytest.raises(Exception, match="last dimension must be 12"):
        run(torch.randn(3, D + 1))
