"""ActivationL1: networks that go over from SiLU or GELU to ReLU, and the pull on dead neurons."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer import densify, sparsify_activations
from gossamer.errors import RecipeError
from gossamer.nn import ActivationSparseFFN
from gossamer.nn.layers.rebuilding import build, describe
from gossamer.recipes import ActivationL1
from support.recipe_course import bits

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 20
Activation = Callable[[Tensor], Tensor]


class MLP(nn.Module):
    def __init__(self, activation: nn.Module, bias: bool = True) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(16, 48, bias), nn.Linear(16, 48, bias)
        self.down, self.act = nn.Linear(48, 16, bias), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


FORMER: dict[str, tuple[nn.Module, Activation]] = {
    "silu": (nn.SiLU(), F.silu),
    "gelu": (nn.GELU(), F.gelu),
    "gelu_tanh": (nn.GELU(approximate="tanh"), lambda x: F.gelu(x, approximate="tanh")),
}


def converted(activation: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(16), MLP(activation), nn.Linear(16, 4)).to(dtype)
    return sparsify_activations(model, relufy=True, gate="float32")


def batch(t: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
    return x, x[:, :4].abs() - x[:, 4:8]


class Course:
    def __init__(self, model: nn.Module, **options: Any) -> None:
        self.model, self.losses = model, []
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        self.recipe = ActivationL1(**options)
        self.recipe.attach(model, self.optimizer, STEPS)

    def run(self, first: int = 0, last: int = STEPS) -> Course:
        for t in range(first, last):
            x, y = batch(t)
            loss = (self.model(x) - y).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())
        return self


# ---- from SiLU or GELU to ReLU -------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMER)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_activation_is_on_its_way(name: str, compiled: bool) -> None:
    module, function = FORMER[name]
    model = converted(module)
    layer = model[1]
    assert layer.former == name
    dense = densify(copy.deepcopy(model))[1]
    x = torch.randn(9, 16, dtype=torch.float64)
    torch.compiler.reset()
    run = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    for softness in (1.0, 0.3, 0.0):
        layer.softness, layer.penalty = softness, 0.2
        g, u = dense.gate(x), dense.up(x)
        h = ((1 - softness) * g.relu() + softness * function(g)) * u
        wanted = dense.down(h)
        loss = wanted.square().sum() + 0.2 * h.abs().sum() / 9
        of_dense = torch.autograd.grad(loss, [dense.gate.weight, dense.up.bias, dense.down.bias])
        y = run(x)
        of_layer = torch.autograd.grad(
            y.square().sum(), [layer.gate, layer.up_bias, layer.down_bias]
        )
        torch.testing.assert_close(y, wanted)
        for a, b in zip(of_layer, of_dense, strict=True):
            torch.testing.assert_close(a, b)
        assert layer.form == ("dense" if softness else "float32")
        with torch.no_grad():
            torch.testing.assert_close(layer(x), wanted)


def test_a_recipe_goes_over_before_its_ramp() -> None:
    original = nn.Sequential(nn.LayerNorm(16), MLP(nn.SiLU()), nn.Linear(16, 4)).double()
    torch.manual_seed(0)
    course = Course(
        converted(nn.SiLU()), target_share=0.1, begin_share=0.5, end_share=0.8, relufy_share=0.5
    )
    original.load_state_dict(densify(copy.deepcopy(course.model)).state_dict())
    x, y = batch(0)
    expected = (original(x) - y).square().mean().item()
    layer, seen = course.model[1], []
    for t in range(STEPS):
        seen.append(float(layer.softness))
        course.run(t, t + 1)
        assert layer.form == ("dense" if t < 10 else "float32")
    assert course.losses[0] == pytest.approx(expected, rel=1e-12)
    assert seen == pytest.approx([max(0.0, 1 - t / 10) for t in range(STEPS)])
    # The ramp begins at ReLU's share, not at SiLU's, of which all are alive.
    assert 0.2 < course.recipe.state["first_share"] < 0.8
    assert course.recipe.strength_now > 0.0
    assert type(densify(course.model)[1].act) is nn.ReLU


def test_a_resumed_course_is_the_same() -> None:
    options = {"strength": 1e-3, "begin_share": 0.5, "end_share": 0.8, "relufy_share": 0.5}
    whole = Course(converted(nn.SiLU()), **options).run()
    first = Course(converted(nn.SiLU()), **options).run(0, 7)
    parts = {"recipe": first.recipe, "model": first.model, "optimizer": first.optimizer}
    states = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    second = Course(converted(nn.SiLU()), **options)
    second.recipe.load_state_dict(states["recipe"])
    second.model.load_state_dict(states["model"])
    second.optimizer.load_state_dict(states["optimizer"])
    second.run(7)
    assert first.losses + second.losses == whole.losses
    assert bits(second.model.state_dict()) == bits(whole.model.state_dict())


def test_copies_and_detached_networks_keep_the_present_activation() -> None:
    course = Course(
        converted(nn.SiLU()), strength=0.0, begin_share=0.5, end_share=0.8, relufy_share=0.5
    ).run(0, 5)
    x = batch(99)[0]
    y = course.model(x)
    again = copy.deepcopy(course.model)
    course.recipe.detach()
    for model in (again, course.model):
        assert model[1].softness == 0.5
        assert torch.equal(model(x), y)
    described = describe(again[1])
    assert described is not None
    assert build(described, again[1].state_dict()).former == "silu"


def test_what_cannot_go_over_slowly() -> None:
    assert converted(nn.Mish())[1].former is None
    with pytest.raises(RecipeError, match=r"had no SiLU or GELU: convert it with"):
        Course(converted(nn.Mish()), target_share=0.1, relufy_share=0.1)
    with pytest.raises(RecipeError, match=r"relufy_share=0\.3, begin_share=0\.1; a network is"):
        ActivationL1(target_share=0.1, relufy_share=0.3)
    model = converted(nn.SiLU())
    ActivationL1(target_share=0.1).attach(model, torch.optim.SGD(model.parameters(), 0.1), 9)
    assert float(model[1].softness) == 0.0


# ---- dead neurons --------------------------------------------------------------------------------


def dying(gate: str = "float32", bias: bool = True, **options: Any) -> ActivationSparseFFN:
    """A network whose neurons 0 to 7 no token of `tokens` makes alive."""
    torch.manual_seed(0)
    layer = ActivationSparseFFN(16, 48, gate=gate, bias=bias, dtype=torch.float64, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        gate_rows = layer.gate if isinstance(layer.gate, Tensor) else None
        if gate_rows is not None:
            gate_rows[:8] = -0.1
        if layer.gate_bias is not None:
            layer.gate_bias[:8] = -0.5
    return layer


def tokens(seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(32, 16, generator=random, dtype=torch.float64)


def deaden(layer: ActivationSparseFFN) -> None:
    form, layer.gate_form = layer.gate_form, "float32"
    with torch.no_grad():
        for t in range(50):
            layer(tokens(t))
    layer.gate_form = form


@pytest.mark.parametrize("way", ["float32", "int8", "dense", "compiled", "compiled dense"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_gradient_of_the_pull(bias: bool, way: str) -> None:
    layer = dying(way.removeprefix("compiled").strip() or "float32", bias)
    deaden(layer)
    dead = layer.shares.dead()
    assert set(range(8)) <= set(dead.tolist())
    assert len(dead) < 48
    x = tokens(100)
    torch.compiler.reset()
    compiled = "compiled" in way
    run = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    wanted = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    g = F.linear(x, layer.gate, layer.gate_bias)
    leaves = [layer.gate, layer.gate_bias] if bias else [layer.gate]
    pulls = torch.autograd.grad(-0.3 * g[:, dead].mean(0).sum(), leaves)
    layer.revival = 0.3
    found = torch.autograd.grad(run(x).square().sum(), list(layer.parameters()))
    names = [name for name, _ in layer.named_parameters()]
    extra = dict(zip(("gate", "gate_bias"), pulls, strict=False))
    for name, a, b in zip(names, found, wanted, strict=True):
        torch.testing.assert_close(a, b + extra.get(name, 0.0), msg=name)
    layer.eval()
    for a, b in zip(
        torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())), wanted, strict=True
    ):
        torch.testing.assert_close(a, b)


def test_sparse_weights_are_pulled_at_their_kept_entries() -> None:
    layer = dying(bias=False, pattern="2:4")
    layer.shares.silent = torch.zeros(48, dtype=torch.int64).index_fill_(0, torch.arange(8), 50)
    x, values = tokens(), layer.sparse_parts["gate"].weight.values
    (plain,) = torch.autograd.grad(layer(x).sum(), values)
    layer.shares.silent.index_fill_(0, torch.arange(8), 50)
    layer.revival = 0.3
    (pulled,) = torch.autograd.grad(layer(x).sum(), values)
    rows = torch.zeros(48, 16, dtype=torch.float64)
    rows[:8] = -0.3 * x.mean(0)
    kept = layer.sparse_parts["gate"].structure
    from gossamer import backend

    torch.testing.assert_close(pulled - plain, backend.gather(rows, kept))


@pytest.mark.parametrize("revival", [0.0, 1e-3])
def test_a_pull_revives(revival: float) -> None:
    layer = dying(bias=False)
    deaden(layer)
    optimizer = torch.optim.Adam(layer.parameters(), lr=3e-3)
    recipe = ActivationL1(strength=0.0, revival=revival)
    recipe.attach(layer, optimizer, total_steps=120)
    for t in range(120):
        optimizer.zero_grad()
        layer(tokens(t)).square().mean().backward()
        optimizer.step()
    silent = layer.shares.silent
    assert silent is not None
    assert bool((silent[:8] < 50).all()) == bool(revival)
    recipe.detach()
    assert layer.revival == 0.0


def test_the_pull_is_scaled_as_the_losses_are() -> None:
    layer = dying()
    deaden(layer)
    recipe = ActivationL1(strength=0.0, revival=0.2)
    recipe.attach(layer, torch.optim.SGD(layer.parameters(), 0.1), total_steps=9)
    recipe.loss_scale = 0.25
    x = tokens()
    (found,) = torch.autograd.grad(layer(x).sum(), layer.gate)
    torch.testing.assert_close(found[0], -0.05 * x.mean(0))
