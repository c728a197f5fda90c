"""First masks that scores choose: every recipe takes them, or says why not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import PatternError, RecipeError
from gossamer.masks import mask_from_score
from gossamer.nn import MaskedLayer, MaskedLinear
from gossamer.patterns import NM
from gossamer.pruning import random_scores
from gossamer.recipes.base.registry import RECIPES, make
from support.recipe_course import OPTIONS, SPARSITY, batch, bits, network, take_step

TAKE = {"slope", "slope-adapters", "static", "static-erk", "set", "rigl", "dsl"}
TAKE |= {"cht", "cht-soft", "hebbian"}
STARTS_SPARSE = {"gmp": {"initial_sparsity": 0.5}, "gmp-sparse": {"initial_sparsity": 0.5}}


def prepared(
    name: str, model: nn.Module, score: Any, **options: Any
) -> tuple[Any, nn.Module, torch.optim.Optimizer]:
    given = {**OPTIONS.get(name, {}), **STARTS_SPARSE.get(name, {}), **options}
    recipe = make(name, RECIPES[name].patterns[SPARSITY], **given)
    model = recipe.prepare(model, exclude=["4"], score=score)
    optimizer = torch.optim.AdamW(recipe.parameters(model), lr=1e-2)
    recipe.attach(model, optimizer, 24)
    return recipe, model, optimizer


@pytest.mark.parametrize("name", RECIPES)
def test_a_score_chooses_the_first_masks_or_is_refused(name: str) -> None:
    model = network()
    before, score = copy.deepcopy(model), random_scores(5)
    if name not in TAKE | set(STARTS_SPARSE):
        with pytest.raises(RecipeError, match=r"got score=.*leave it out"):
            prepared(name, model, score)
        assert bits(model.state_dict()) == bits(before.state_dict())
        return
    recipe, model, optimizer = prepared(name, model, score)
    assert len(recipe.layers) == 2
    for at, layer in recipe.layers.items():
        assert isinstance(layer, MaskedLayer)
        dense = before.get_submodule(at).weight.detach()  # type: ignore[union-attr,operator]
        expected = mask_from_score(score(at, dense), layer.pattern)
        assert torch.equal(layer.mask(), expected)
        assert torch.equal(layer.used_weight(), torch.where(expected, dense, 0.0))
    for t in range(3):
        assert take_step(model, optimizer, *batch(t)) > 0


@pytest.mark.parametrize("name", sorted(STARTS_SPARSE))
def test_without_sparsity_at_the_start_there_is_nothing_to_choose(name: str) -> None:
    with pytest.raises(RecipeError, match="initial_sparsity"):
        prepared(name, network(), "random", initial_sparsity=0.0)


@pytest.mark.parametrize("name", sorted(STARTS_SPARSE))
def test_gradual_pruning_stays_inside_a_random_first_mask(name: str) -> None:
    recipe, model, optimizer = prepared(name, network(), random_scores(1))
    first = {at: layer.mask().clone() for at, layer in recipe.layers.items()}
    for t in range(24):
        take_step(model, optimizer, *batch(t))
        for at, layer in recipe.layers.items():
            assert not (layer.mask() & ~first[at]).any()
            if isinstance(layer, MaskedLinear):
                assert not layer.weight[~first[at]].any()
    final = [layer.density for layer in recipe.layers.values()]
    assert final == [0.25, 0.25]


def test_both_forms_of_gradual_pruning_are_one(one_thread: None) -> None:
    results = []
    for name in sorted(STARTS_SPARSE):
        _, model, optimizer = prepared(name, network(), random_scores(1))
        results.append([take_step(model, optimizer, *batch(t)) for t in range(24)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def _large(name: str, weight: Tensor) -> Tensor:
    return weight.abs()


def test_magnitudes_by_any_name_give_what_magnitudes_give(one_thread: None) -> None:
    runs = []
    for score in (None, "magnitude", _large, {"0": network()[0].weight, "2": network()[2].weight}):
        if isinstance(score, dict):
            score = {at: weight.detach().abs() for at, weight in score.items()}
        _, model, optimizer = prepared("slope", network(), score)
        runs.append([take_step(model, optimizer, *batch(t)) for t in range(8)])
    assert runs[0] == runs[1] == runs[2] == runs[3]


def test_convolutions_take_scores_of_their_own_shape() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, bias=False))
    dense = model[0].weight.detach().clone()
    score = torch.rand(dense.shape, generator=torch.Generator().manual_seed(0))
    recipe = make("static", NM(1, 4))
    sparse = recipe.prepare(model, score={"0": score})[0]
    kept = score.movedim(1, -1).reshape(8, 9, 1, 4)  # groups run along the channels
    kept = kept == kept.amax(-1, keepdim=True)
    expected = torch.where(kept.reshape(8, 3, 3, 4).movedim(-1, 1), dense, 0.0)
    assert torch.equal(sparse.to_dense().weight.detach(), expected)


def test_wrong_scores_leave_the_model_as_it_was() -> None:
    model = network()
    before = bits(model.state_dict())
    for score in ({"0": torch.rand(64, 32)}, "largest"):
        with pytest.raises(PatternError, match="score="):
            make("static", "75%").prepare(model, exclude=["4"], score=score)
        assert bits(model.state_dict()) == before
