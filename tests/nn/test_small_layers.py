"""A layer never ends with nothing, and a layer of few outputs with empty rows is named."""

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from gossamer import Block, SparseLinear, Unstructured, parse_pattern, recipes, sparsify
from gossamer.masks import magnitude_mask, random_mask
from gossamer.masks.together import top_masks
from gossamer.nn import MaskedLayer
from gossamer.recipes import RECIPES


@pytest.mark.parametrize("pattern", ["98%", "99.99%", "95%:v4", "block 4x4 97%", "block 1x1 99%"])
@pytest.mark.parametrize("shape", [(4, 4), (4, 8), (8, 4)])
def test_rounding_keeps_at_least_one_slot(pattern: str, shape: tuple[int, int]) -> None:
    found = parse_pattern(pattern)
    high, wide = found.tile
    assert found.count(*shape) == high * wide
    assert int(magnitude_mask(torch.randn(shape), found).sum()) == high * wide
    assert int(random_mask(shape, found).sum()) == high * wide
    assert SparseLinear(shape[1], shape[0], pattern=found).nnz == high * wide


def test_nothing_is_kept_where_nothing_was_asked_for() -> None:
    assert Unstructured(1.0).count(4, 4) == Block(2, 2, 1.0).count(4, 4) == 0
    assert Unstructured(0.9).count(0, 4) == Block(2, 2, 0.5).count(0, 4) == 0


def head() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 8), nn.Linear(8, 1))


def test_a_head_stays_alive_and_few_outputs_are_named() -> None:
    model = head()
    with pytest.warns(UserWarning, match=r"layer '2' \(8x40, .*\): [5-7] of 8") as told:
        sparsify(model, "99%")
    assert len(told) == 1
    assert "'3'" not in str(told[0].message)  # its one output reads one entry
    assert [layer.nnz for layer in model if isinstance(layer, SparseLinear)] == [26, 3, 1]
    alone = sparsify(nn.Linear(8, 1), "99%")
    assert alone(torch.randn(16, 8)).std() > 0


def moving() -> Iterator[str]:
    """Names of the recipes that choose how many entries a layer keeps."""
    for name, entry in RECIPES.items():
        if entry.patterns[90].endswith("%") and not name.startswith("sparse-ift"):
            yield name


@pytest.mark.parametrize("name", list(moving()))
def test_no_recipe_ends_with_an_empty_layer(name: str) -> None:
    recipe = recipes.make(name, "95%")
    model = nn.Sequential(nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 8), nn.Linear(8, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = recipe.prepare(model)
        with torch.no_grad():
            for parameter in model[3].parameters():
                parameter.mul_(1e-3)  # the smallest of all: what is ranked globally drops it first
        optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.01)
        recipe.attach(model, optimizer, total_steps=60)
        for _ in range(60):
            optimizer.zero_grad()
            model(torch.randn(8, 64)).square().mean().backward()
            optimizer.step()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = recipe.finish(model)
    layers = [layer for layer in model if isinstance(layer, MaskedLayer)]
    assert len(layers) == 3
    assert min(layer.nnz for layer in layers) >= 1
    empty = not all(bool(layer.mask().any(1).all()) for layer in layers[1:])
    assert len(told) == empty
    assert not empty or "finish: outputs that read nothing" in str(told[0].message)


def test_a_global_ranking_keeps_the_largest_of_each() -> None:
    weights = [torch.full((4, 4), 9.0), torch.tensor([[1.0, 2.0]]), torch.zeros(0, 4)]
    masks = top_masks(weights, Unstructured(0.5))
    assert [int(mask.sum()) for mask in masks] == [8, 1, 0]
    assert masks[1].tolist() == [[False, True]]
    nan = top_masks([torch.tensor([[1.0, torch.nan]]), torch.full((1, 4), 9.0)], Unstructured(0.5))
    assert nan[0].tolist() == [[False, True]]


def test_wide_layers_and_full_rows_are_not_told() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsify(nn.Linear(4, 64), "99%")  # 61 rows of 64 are empty
        sparsify(nn.Linear(64, 8), "50%")
        recipes.GMP("50%").prepare(nn.Linear(64, 8))


def test_a_recipe_tells_before_the_training_what_must_come() -> None:
    with pytest.warns(UserWarning, match=r"prepare: .*layer '' \(8x4, 95%\): 6 of 8"):
        recipes.GMP("95%").prepare(nn.Linear(4, 8))
