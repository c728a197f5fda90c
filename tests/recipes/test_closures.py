"""Recipes under `optimizer.step(closure)` and under gradient scaling, as trainers call them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer import backend
from gossamer.errors import DTypeError, RecipeError
from gossamer.masks import check_mask
from gossamer.nn import SparseLinear
from gossamer.recipes.base.registry import RECIPES
from support.recipe_course import STEPS, Course, batch, bits, mask_of, parts_of

ALL = list(RECIPES)
# Each forward pass draws another sample of the gradient.
DRAWING = ("fst", "fst-sparse", "sste")
# What the mask drops is 0 in the stored weight too.
ZERO_OUTSIDE = ("gmp", "imp", "dsl")

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


@cache
def plain(name: str) -> Course:
    torch.set_num_threads(1)
    return Course(name).run()


def clear_first(course: Course, t: int) -> Tensor:
    """The order of torch's documentation."""
    x, y = batch(t)
    course.optimizer.zero_grad()
    loss = (course.outer(x) - y).square().mean()
    loss.backward()
    return loss


def clear_late(course: Course, t: int) -> Tensor:
    """The order of Lightning: the old gradients are still there in the forward pass."""
    x, y = batch(t)
    loss = (course.outer(x) - y).square().mean()
    course.optimizer.zero_grad()
    loss.backward()
    return loss


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("evaluate", [clear_first, clear_late])
@pytest.mark.parametrize("by_name", [False, True])
def test_with_a_closure_a_recipe_trains_as_without(
    name: str, evaluate: Callable[[Course, int], Tensor], by_name: bool
) -> None:
    course = Course(name)
    for t in range(STEPS):

        def closure(t: int = t) -> Tensor:
            return evaluate(course, t)

        step = course.optimizer.step
        loss = step(closure=closure) if by_name else step(closure)
        course.losses.append(loss.item())
        assert course.recipe.step == t + 1
    assert course.losses == plain(name).losses
    assert bits(course.state()) == bits(plain(name).state())


@pytest.mark.parametrize("name", ALL)
def test_micro_batches_before_the_closure_count(name: str) -> None:
    """Gradient accumulation: the closure computes the last part of the gradients only."""
    courses = [Course(name), Course(name)]
    for t in range(STEPS):
        for course, with_closure in zip(courses, (False, True), strict=True):
            (x, y), (x2, y2) = batch(t), batch(100 + t)
            course.optimizer.zero_grad()
            (course.outer(x) - y).square().mean().backward()

            def last(course: Course = course, x2: Tensor = x2, y2: Tensor = y2) -> None:
                (course.outer(x2) - y2).square().mean().backward()

            if with_closure:
                course.optimizer.step(last)
            else:
                last()
                course.optimizer.step()
    assert bits(courses[0].state()) == bits(courses[1].state())


class Twice(torch.optim.AdamW):
    """Evaluates a closure twice, at the same parameters, and takes the second gradients.

    torch's hooks run twice as well: around this step, and around the one of its base class.
    """

    def step(self, closure: Any = None) -> Any:
        if closure is not None:
            with torch.enable_grad():
                closure()
        return super().step(closure)


@pytest.mark.parametrize("name", [name for name in ALL if name not in DRAWING])
def test_gradients_that_are_computed_again_replace_the_first_ones(name: str) -> None:
    course = Course(name, attach=False)
    course.optimizer = Twice(course.recipe.parameters(course.model), lr=1e-2, weight_decay=0.01)
    course.recipe.attach(course.model, course.optimizer, STEPS)
    for t in range(STEPS):
        evaluate = (clear_first, clear_late)[t % 2]
        batches = iter((100 + t, t))
        course.optimizer.step(lambda evaluate=evaluate, b=batches: evaluate(course, next(b)))
    assert bits(course.state()) == bits(plain(name).state())


@pytest.mark.parametrize("name", ALL)
def test_a_step_inside_a_step_counts_once(name: str) -> None:
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])  # now its step runs the hooks
    course = Course(name, attach=False)
    course.optimizer = Twice(course.recipe.parameters(course.model), lr=1e-2, weight_decay=0.01)
    course.recipe.attach(course.model, course.optimizer, STEPS)

    def failing() -> None:
        raise KeyError("no more data")

    for t in range(STEPS):
        if t == 3:
            with pytest.raises(KeyError):
                course.optimizer.step(failing)
        course.step(t)
    assert course.losses == plain(name).losses
    assert bits(course.state()) == bits(plain(name).state())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_an_optimizer_may_call_its_closure_many_times(name: str, line_search: str | None) -> None:
    course = Course(name, attach=False)
    course.optimizer = torch.optim.LBFGS(
        course.model.parameters(), lr=0.1, max_iter=4, history_size=5, line_search_fn=line_search
    )
    if name == "slope-adapters":
        with pytest.raises(RecipeError, match="adapter_rank=0"):
            course.recipe.attach(course.model, course.optimizer, STEPS)
        return
    course.recipe.attach(course.model, course.optimizer, STEPS)
    calls = 0
    for t in range(STEPS):

        def closure(t: int = t) -> Tensor:
            nonlocal calls
            calls += 1
            return clear_first(course, t)

        course.losses.append(course.optimizer.step(closure).item())
        for part in parts_of(course.model).values():
            mask = mask_of(part)
            if isinstance(part, SparseLinear):
                backend.validate(part.weight.structure, part.weight.nnz)
                check_mask(mask, part.weight.pattern)
            elif name in ZERO_OUTSIDE:
                assert not part.weight[~mask].any(), "its memory brought dropped entries back"
    assert course.recipe.step == STEPS
    assert calls > 2 * STEPS
    assert all(p.isfinite().all() for p in course.model.parameters())
    assert sum(course.losses[-4:]) < sum(course.losses[:4])


class Wrapper(torch.optim.Optimizer):
    """As trainers wrap an optimizer: the base class is not initialised, so it has no hooks."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


def test_a_wrapped_optimizer_is_followed() -> None:
    course = Course("rigl", attach=False)
    wrapper = Wrapper(Wrapper(course.optimizer))
    course.recipe.attach(course.model, wrapper, STEPS)
    for t in range(STEPS):
        wrapper.step(partial(clear_first, course, t))
    assert bits(course.state()) == bits(plain("rigl").state())
    with pytest.raises(DTypeError, match="Linear; a torch"):
        Course("rigl", attach=False).recipe.attach(course.model, torch.nn.Linear(2, 2), STEPS)


# ---- gradient scaling ----------------------------------------------------------------------------
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
def test_scaled_gradients_train_as_unscaled_and_a_skipped_step_does_not_count(
    name: str, fused: bool
) -> None:
    def course_with(scaled: bool) -> tuple[Course, Any]:
        course = Course(name, attach=False)
        course.optimizer = torch.optim.AdamW(
            course.recipe.parameters(course.model), lr=1e-2, weight_decay=0.01, fused=fused
        )
        course.recipe.attach(course.model, course.optimizer, STEPS)
        # A power of two: scaling and unscaling change no bit.
        return course, torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)

    (reference, off), (course, scaler) = course_with(False), course_with(True)
    for t in range(STEPS):
        for one, scale in ((reference, off), (course, scaler)):
            x, y = batch(t)
            one.optimizer.zero_grad()
            scale.scale((one.outer(x) - y).square().mean()).backward()
            scale.step(one.optimizer)
            scale.update()
        if t == 5:
            for one, scale in ((reference, off), (course, scaler)):
                one.optimizer.zero_grad()
                scale.scale((one.outer(x) - y).square().mean() * torch.inf).backward()
            before = bits(course.state())
            scaler.step(course.optimizer)
            scaler.update(1024.0)
            assert bits(course.state()) == before
            assert course.recipe.step == 6
    assert bits(course.state()) == bits(reference.state())
