"""ActivationL1: its gradient, its ramp, its control of the live share, and resuming."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import DTypeError, RecipeError
from gossamer.nn import ActivationSparseFFN
from gossamer.recipes import ActivationL1
from gossamer.recipes.base.identity import identity
from gossamer.train import load_checkpoint, save_checkpoint
from support.recipe_course import bits

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 24


def network(seed: int = 0, gate: Any = "float32", dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(16, 32),
        ActivationSparseFFN(32, 128, gate=gate),
        nn.LayerNorm(32),
        ActivationSparseFFN(32, 64, gated=False, gate=gate),
        nn.Linear(32, 4),
    ).to(dtype)


def batch(t: int, rows: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(rows, 16, generator=generator)
    return x, x[:, :4].abs() - x[:, 4:8]


class Course:
    """A recipe, its model and its optimizer, and the losses of their steps so far."""

    def __init__(self, steps: int = STEPS, seed: int = 0, gate: Any = "float32", **options: Any):
        self.recipe = ActivationL1(**(options or {"target_share": 0.1}))
        self.model = network(seed, gate)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        self.recipe.attach(self.model, self.optimizer, steps)
        self.losses: list[float] = []

    def run(self, first: int = 0, last: int = STEPS) -> Course:
        for t in range(first, last):
            x, y = batch(t)
            loss = (self.model(x) - y).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())
        return self

    @property
    def parts(self) -> dict[str, Any]:
        return {"recipe": self.recipe, "model": self.model, "optimizer": self.optimizer}

    def state(self) -> dict[str, Any]:
        return {name: copy.deepcopy(part.state_dict()) for name, part in self.parts.items()}


# ---- the gradient --------------------------------------------------------------------------------
def oracle(model: nn.Module, x: Tensor, y: Tensor, strength: float) -> list[Tensor]:
    """Gradients of loss + strength * sum over layers of the mean over rows of sum |h|."""
    penalty = torch.zeros((), dtype=x.dtype)
    for layer in model:
        if isinstance(layer, ActivationSparseFFN):
            h = torch.relu(x @ layer.gate.t())
            h = h if layer.up is None else h * (x @ layer.up.t())
            penalty = penalty + h.abs().sum(-1).mean()
            x = h @ layer.down
        else:
            x = layer(x)
    loss = (x - y).square().mean() + strength * penalty
    return list(torch.autograd.grad(loss, list(model.parameters())))


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("gate", ["float32", "dense"])
def test_the_gradient_is_that_of_the_loss_with_the_penalty(gate: Any) -> None:
    model = network(gate=gate, dtype=torch.float64)
    recipe = ActivationL1(0.05, begin_share=0.0, end_share=0.0)
    recipe.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), STEPS)
    x, y = (part.double() for part in batch(0))
    (model(x) - y).square().mean().backward()
    torch.testing.assert_close(gradients(model), oracle(model, x, y, 0.05))
    model.zero_grad()
    model.eval()
    (model(x) - y).square().mean().backward()
    torch.testing.assert_close(gradients(model), oracle(model, x, y, 0.0))


def test_micro_batches_add_up_when_the_loss_scale_is_theirs() -> None:
    model = network(dtype=torch.float64)
    recipe = ActivationL1(0.05, begin_share=0.0, end_share=0.0)
    recipe.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), STEPS)
    recipe.loss_scale = 1 / 4
    x, y = (part.double() for part in batch(0))
    for part, target in zip(x.chunk(4), y.chunk(4), strict=True):
        ((model(part) - target).square().mean() / 4).backward()
    torch.testing.assert_close(gradients(model), oracle(model, x, y, 0.05))


def test_a_scaled_loss_gives_the_same_step_also_when_the_scale_changes() -> None:
    plain, scaled = (Course(strength=0.05, end_share=0.3) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    scaled.recipe.loss_scale = scaler.get_scale
    for t in range(8):
        x, y = batch(t)
        loss = (scaled.model(x) - y).square().mean()
        scaled.optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(scaled.optimizer)
        scaler.update()
    assert scaler.get_scale() > 2.0**10
    assert bits(scaled.model.state_dict()) == bits(plain.run(last=8).model.state_dict())


# ---- the ramp and the control --------------------------------------------------------------------
def test_the_strength_follows_the_ramp() -> None:
    course = Course(steps=20, strength=0.2, begin_share=0.25, end_share=0.75)
    seen = []
    for t in range(20):
        seen.append(course.recipe.strength_now)
        course.run(t, t + 1)
    assert seen == pytest.approx([0.0] * 6 + [0.02 * i for i in range(1, 10)] + [0.2] * 5)


@pytest.mark.parametrize("target", [0.2, 0.05])
def test_the_share_reaches_its_target_and_stays(target: float) -> None:
    course = Course(steps=400, target_share=target)
    shares = []
    for t in range(400):
        course.run(t, t + 1)
        shares.append(course.recipe.live_share)
    assert shares[39] > 0.4
    late = [abs(math.log(share / target)) for share in shares[200:]]
    assert sum(late) / len(late) < 0.15
    assert max(late) < 0.6
    free = Course(steps=400, strength=0.0).run(last=100)
    assert free.recipe.live_share > 2 * target


def test_the_target_falls_in_a_straight_line_of_logs_and_has_that_mean() -> None:
    course = Course(steps=1000, target_share=0.05)
    course.recipe.state["first_share"] = 0.5
    targets = [course.recipe.target_at(t) for t in range(1000)]
    assert targets[100] == pytest.approx(0.5)
    assert targets[250] == pytest.approx(math.sqrt(0.5 * 0.05))
    assert targets[400:] == pytest.approx([0.05] * 600)
    assert course.recipe.mean_share(0.5) == pytest.approx(sum(targets) / 1000, rel=3e-3)


@pytest.mark.parametrize("gate", ["float32", "dense"])
def test_shares_count_training_passes_alone(gate: Any) -> None:
    course = Course(gate=gate)
    x, _ = batch(0)
    h = torch.relu(course.model[:1](x) @ course.model[1].gate.t())
    course.model.eval()(10 * torch.randn(500, 16))
    course.model.train()
    course.run(last=1)
    assert course.recipe.live_shares["1"] == pytest.approx(float((h > 0).double().mean()))
    again = Course(gate=gate)
    for t in range(6):
        again.run(t, t + 1)
        with torch.no_grad():
            again.model.eval()(torch.randn(100, 16))
        again.model.train()
    assert bits(again.model.state_dict()) == bits(course.run(1, 6).model.state_dict())


# ---- what every recipe promises ------------------------------------------------------------------
@pytest.mark.parametrize("options", [{"target_share": 0.1}, {"strength": 0.02}])
def test_resuming_equals_no_interruption_bit_for_bit(
    options: dict[str, Any], tmp_path: Path
) -> None:
    course, saved = Course(**options), {}
    for t in range(STEPS):
        if t in (1, 5, 18):
            saved[t] = course.state()
        course.run(t, t + 1)
    for t, state in saved.items():
        save_checkpoint(tmp_path / "saved", state)
        again = Course(seed=7, **options)
        read = load_checkpoint(tmp_path / "saved")
        for name, part in again.parts.items():
            part.load_state_dict(read[name])
        again.run(t)
        assert again.losses == course.losses[t:]
        assert bits(again.state()) == bits(course.state())


@pytest.mark.parametrize("off", ["strength=0", "detached"])
def test_off_it_is_the_plain_optimizer_bit_for_bit(off: str) -> None:
    course = Course(strength=0.0 if off == "strength=0" else 1.0, begin_share=0.0, end_share=0.0)
    if off == "detached":
        course.recipe.detach()
        assert not course.recipe.layers
        assert course.recipe.live_shares == {}
    plain = Course()
    plain.recipe.detach()
    assert course.run().losses == plain.run().losses
    assert bits(course.model.state_dict()) == bits(plain.model.state_dict())


def test_a_copy_has_the_number_and_not_the_recipe() -> None:
    course = Course(strength=0.5).run(last=20)
    for other in (copy.deepcopy(course.model), pickle.loads(pickle.dumps(course.model))):  # noqa: S301  # noqa: S301
        assert type(other[1].penalty) is float
        assert other[1].penalty == 0.5
        twin = ActivationL1(strength=0.5)
        twin.attach(other, torch.optim.SGD(other.parameters(), lr=0.1), STEPS)
    before = bits(other.state_dict())
    course.run(20)
    assert bits(other.state_dict()) == before


def test_a_step_without_finite_gradients_does_not_count() -> None:
    course = Course()
    scaler = torch.amp.GradScaler("cpu")
    x, y = batch(0)
    scaler.scale((course.model(x * math.inf) - y).square().mean()).backward()
    scaler.step(course.optimizer)
    assert course.recipe.step == 0


# ---- bad input -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, RecipeError, "needs one of them"),
        ({"strength": 1.0, "target_share": 0.1}, RecipeError, "needs one of them"),
        ({"strength": -1.0}, RecipeError, "strength=-1.0; it must be a finite number"),
        ({"strength": math.nan}, RecipeError, "strength=nan"),
        ({"strength": "1"}, DTypeError, "it must be a number or None"),
        ({"target_share": 0.0}, RecipeError, "between 0 and 1"),
        ({"target_share": 1.0}, RecipeError, "between 0 and 1"),
        ({"target_share": math.nan}, RecipeError, "not NaN"),
        ({"target_share": 0.1, "begin_share": 1.5}, RecipeError, "begin_share=1.5"),
        ({"target_share": 0.1, "end_share": -0.5}, RecipeError, "end_share=-0.5"),
        ({"target_share": 0.1, "begin_share": 0.5}, RecipeError, "swap them"),
    ],
)
def test_options_are_checked(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        ActivationL1(**options)


def test_attach_is_checked_and_changes_nothing() -> None:
    recipe, model = ActivationL1(0.1), network()
    plain = nn.Linear(4, 4)
    with pytest.raises(RecipeError, match="without ActivationSparseFFN"):
        recipe.attach(plain, torch.optim.SGD(plain.parameters(), lr=0.1), STEPS)
    with pytest.raises(RecipeError, match=r"the optimizer misses 1\.gate"):
        recipe.attach(model, torch.optim.SGD(model[0].parameters(), lr=0.1), STEPS)
    assert float(model[1].penalty) == 0.0
    with pytest.raises(RecipeError, match="before attach"):
        recipe.load_state_dict({})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe.attach(model, optimizer, STEPS)
    with pytest.raises(RecipeError, match="attached already"):
        ActivationL1(0.1).attach(model, optimizer, STEPS)
    state = recipe.state_dict()
    recipe.detach()
    other = ActivationL1(0.2)
    other.attach(model, optimizer, STEPS)
    with pytest.raises(RecipeError, match=r"has strength=0.1, this training's has strength=0.2"):
        other.load_state_dict(state)
    assert identity(recipe)["recipe"] == "activation-l1"
    with pytest.raises(RecipeError, match="give the target"):
        recipe.mean_share(0.5)
