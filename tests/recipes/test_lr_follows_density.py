"""Under a recipe, the learning rate of each weight follows the density that its mask has now."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gossamer.nn import MaskedLayer
from gossamer.recipes import RECIPES
from gossamer.recipes.gmp import GMP
from gossamer.train import load_checkpoint, save_checkpoint
from support.recipe_course import STEPS, Course, bits

# Recipes whose density changes on the way, and such that stay; the adapters of one come late.
MOVING = ["gmp", "gmp-sparse", "imp", "autosparse", "structure-decay-stepwise", "fst", "dsl"]
STAYING = ["static", "rigl", "srste", "slope-adapters"]


def expected(course: Course) -> dict[int, float]:
    """Factor by id of the parameter."""
    return {
        id(layer.entries): (layer.used_entries / (layer.in_features * layer.out_features)) ** -0.5
        for layer in course.model.modules()
        if isinstance(layer, MaskedLayer)
    }


def factors(course: Course) -> dict[int, float]:
    return {
        id(group["params"][0]): group["lr_factor"]
        for group in course.optimizer.param_groups
        if "lr_factor" in group
    }


@pytest.mark.parametrize("name", [*MOVING, *STAYING])
def test_the_factor_is_that_of_the_present_density(name: str) -> None:
    course = Course(name, scale_lr=0.5)
    seen = set()
    for t in range(STEPS):
        assert factors(course) == pytest.approx(expected(course)), t
        seen |= set(factors(course).values())
        course.step(t)
    assert {group["lr"] for group in course.optimizer.param_groups} == {1e-2}
    assert (max(seen) > 1.02 * min(seen)) == (name in MOVING)


@pytest.mark.parametrize("name", [*MOVING, *STAYING])
def test_a_resumed_run_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    course = Course(name, scale_lr=0.5)
    saved: dict[int, Any] = {}
    for t in range(STEPS):
        if t in (1, 11, 23):
            saved[t] = copy.deepcopy(course.state())
        course.step(t)
    whole = bits(course.state())
    for t, state in saved.items():
        save_checkpoint(tmp_path / "saved", state)
        again = Course(name, seed=7, scale_lr=0.5)
        again.load(load_checkpoint(tmp_path / "saved"))
        again.run(t)
        assert again.losses == course.losses[t:], f"resumed after {t} steps"
        assert bits(again.state()) == whole, f"resumed after {t} steps"


def test_a_scheduler_does_not_undo_what_pruning_changes() -> None:
    torch.manual_seed(0)
    recipe = GMP("90%", every=2)
    model = recipe.prepare(nn.Sequential(nn.Linear(32, 64)))
    optimizer = torch.optim.SGD(recipe.parameters(model, scale_lr=1.0), lr=1e-3)
    recipe.attach(model, optimizer, total_steps=10)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0 / (1 + t))
    used: list[float] = []
    optimizer.register_step_pre_hook(lambda o, *_: used.append(o.param_groups[-1]["lr"]))
    for t in range(10):
        used_density = model[0].density
        optimizer.zero_grad()
        model(torch.randn(8, 32)).square().mean().backward()
        optimizer.step()
        scheduler.step()
        assert used[-1] == pytest.approx(1e-3 / (1 + t) / used_density)
    assert model[0].density == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("name", [n for n in RECIPES if n.startswith("sparse-ift")])
def test_layers_that_sum_as_many_inputs_as_dense_ones_keep_their_rate(name: str) -> None:
    assert not factors(Course(name, scale_lr=0.5))
