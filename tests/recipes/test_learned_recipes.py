"""AutoSparse, HyperSparse, ISSP, Lobster and TopL0: resuming, short trainings, bad numbers."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.errors import RecipeError
from gossamer.masks import check_mask
from gossamer.recipes.autosparse import AutoSparse
from gossamer.recipes.base.recipe import Recipe
from gossamer.recipes.hypersparse import HyperSparse
from gossamer.recipes.issp import ISSP
from gossamer.recipes.lobster import Lobster
from gossamer.recipes.top_l0 import TopL0
from support.learned_course import masters, net, run, start

KINDS = [HyperSparse, ISSP, Lobster, TopL0, AutoSparse]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [5, 15, 19])
@pytest.mark.slow
def test_resume_is_bit_equal(kind: type[Recipe], stop: int) -> None:
    whole = kind("75%")
    model, optimizer = start(whole, 20)
    run(whole, model, optimizer, 0, 20)

    recipe = kind("75%")
    again, second = start(recipe, 20)
    run(recipe, again, second, 0, stop)
    saved = copy.deepcopy((recipe.state_dict(), again.state_dict(), second.state_dict()))
    recipe = kind("75%")
    again = recipe.prepare(net(seed=7))
    second = torch.optim.AdamW(recipe.parameters(again), lr=1e-2)
    recipe.attach(again, second, total_steps=20)
    for part, state in zip((recipe, again, second), saved, strict=True):
        part.load_state_dict(state)
    run(recipe, again, second, stop, 20)
    for mine, theirs in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs


@pytest.mark.parametrize(
    "make",
    [
        lambda: AutoSparse(alpha=1.5),
        lambda: AutoSparse(scope="row"),
        lambda: AutoSparse(finetune_share=-0.1),
        lambda: HyperSparse(warmup_share=2.0),
        lambda: HyperSparse(lam=-1.0),
        lambda: HyperSparse(growth=float("nan")),
        lambda: ISSP(shrink=1.1),
        lambda: ISSP(prune_share=-1.0),
        lambda: Lobster(strength=float("inf")),
        lambda: TopL0(begin_share=-1.0),
    ],
)
def test_bad_numbers(make: Any) -> None:
    with pytest.raises(RecipeError, match=r"alpha|scope=|share|lam|strength|growth|shrink"):
        make()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_very_short_trainings(kind: type[Recipe], steps: int) -> None:
    recipe = kind("1:4")
    model, optimizer = start(recipe, steps)
    run(recipe, model, optimizer, 0, steps)
    for layer in masters(model):
        check_mask(layer.mask(), "1:4")
        assert int(layer.weight.count_nonzero()) <= layer.weight.numel() // 4
