"""Recipes under torch.compile: one graph without breaks, and the masks of the eager training."""

import copy

import pytest
import torch
from torch import nn
from torch.library import opcheck

from gossamer import RecipeError
from gossamer.recipes import DSL, RECIPES, RigL, make
from gossamer.recipes.base.capture import Capture
from gossamer.recipes.base.compiled_capture import _CAPTURES

pytestmark = pytest.mark.slow
STEPS = 12


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))


def train(
    recipe, backend: str | None = None, *, late: bool = False
) -> tuple[nn.Module, list[float]]:
    """Train; `late` attaches the recipe after the first call of the compiled model."""
    torch.compiler.reset()
    model = recipe.prepare(net())
    run = model
    if backend:
        run = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    if late:
        run(torch.randn(4, 16)).sum().backward()
        optimizer.zero_grad()
    recipe.attach(model, optimizer, total_steps=STEPS)
    losses = []
    for step in range(STEPS):
        if step == 4:  # an abandoned step, whose gradients do not count
            run(torch.ones(6, 16)).sum().backward()
        optimizer.zero_grad()
        for size in (5, 3 + step % 2):  # accumulated, and of several sizes
            x = torch.randn(size, 16, generator=generator)
            loss = (run(x) - x.roll(1, 1)).square().mean()
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def options(name: str) -> dict[str, int]:
    fields = RECIPES[name].load().__dataclass_fields__
    return {"every": 2} if name in ("set", "rigl", "dsl") and "every" in fields else {}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_in_one_graph(name: str) -> None:
    _, expected = train(make(name, **options(name)))
    # The values of gmp-sparse become fewer, and torch compiles anew for each size of a parameter.
    with torch._dynamo.config.patch(recompile_limit=64 if name == "gmp-sparse" else 8):
        _, got = train(make(name, **options(name)), "aot_eager")
    assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own imports
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("kind", [RigL, DSL])
def test_masks_grow_as_they_do_without_a_compiler(kind: type[RigL], backend: str) -> None:
    first = kind("75%", every=2, end_share=1.0)
    start = [layer.mask() for layer in first.prepare(net())[::2]]
    eager, _ = train(kind("75%", every=2, end_share=1.0))
    compiled, _ = train(kind("75%", every=2, end_share=1.0), backend)
    for before, a, b in zip(start, eager[::2], compiled[::2], strict=True):
        assert torch.equal(a.mask(), b.mask())
        assert not torch.equal(a.mask(), before)


def test_copies_are_captured_and_in_wanted_steps_alone() -> None:
    """A graph may write into x and dY once its operator has run."""
    wanted = [True]
    capture = Capture(nn.Parameter(torch.zeros(3)), (4, 4), lambda: wanted[0])
    x, g = torch.randn(2, 5, 4).unbind(0)
    expected = x.clone(), g.clone()
    back = torch.ops.gossamer.capture_backward(g, x, capture.number)
    for tensor in (x, g, back):
        tensor.zero_()
    ((found, gradient),) = capture.coming
    assert torch.equal(found, expected[0])
    assert torch.equal(gradient, expected[1])
    wanted[0] = False
    torch.ops.gossamer.capture_backward(g, x, capture.number)
    assert len(capture.coming) == 1


def test_a_recipe_that_is_attached_too_late_is_told() -> None:
    with pytest.raises(RecipeError, match="compiled before recipe"):
        train(RigL("75%", every=2, end_share=1.0), "aot_eager", late=True)


def test_the_operator_obeys_the_rules_and_ends_with_its_capture() -> None:
    capture = Capture(nn.Parameter(torch.zeros(3)), (4, 4), lambda: True)
    y, x = torch.randn(2, 5, 4, 3, requires_grad=True).unbind(0)
    y = y.detach().requires_grad_()
    results = opcheck(torch.ops.gossamer.capture.default, (y, x.detach(), capture.number))
    assert set(results.values()) == {"SUCCESS"}
    assert _CAPTURES[capture.number] is capture
    assert copy.deepcopy(capture).number < 0
    number = capture.number
    del capture
    assert number not in _CAPTURES
    (grad,) = torch.autograd.grad(torch.ops.gossamer.capture(y, x, number).sum(), y)
    assert torch.equal(grad, torch.ones_like(y))
