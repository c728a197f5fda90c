"""Static: masks that never move, and how densities are shared out."""

import torch
from torch import nn

from gossamer.masks import allocate, magnitude_mask
from gossamer.recipes.rigl import RigL
from gossamer.recipes.set import SET
from gossamer.recipes.static import Static
from support.recipe_course import training


def masks(recipe):
    return [
        layer.mask() if hasattr(layer, "mask") else layer.weight.mask()
        for layer in recipe.layers.values()
    ]


def test_erk_gives_each_layer_its_share_and_static_masks_never_move():
    recipe = Static("80%", distribution="erk", seed=3)
    model, _, step = training(recipe, 20)
    shares = allocate({"0": (64, 32), "2": (16, 64)}, 0.8, "erk")
    for name, size in (("0", 2048), ("2", 1024)):
        layer = recipe.layers[name]
        assert layer.weight.nnz == round(size * (1 - shares[name]))
    first = masks(recipe)
    for _ in range(20):
        step()
    assert all(torch.equal(a, b) for a, b in zip(first, masks(recipe), strict=True))
    assert not torch.equal(first[0], magnitude_mask(model[0].weight.to_dense(), "50%"))
    found = [make(p).distribution for make in (Static, RigL) for p in ("2:8", "50%")]
    assert found == ["uniform", "uniform", "uniform", "erk"]


def test_layers_of_one_shape_have_masks_of_their_own():
    recipe = Static("50%")
    recipe.prepare(model := nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)))
    assert not torch.equal(model[0].weight.mask(), model[1].weight.mask())


def test_no_fraction_is_static_bit_for_bit():
    weights = []
    for recipe in (
        Static("80%", distribution="erk"),
        SET("80%", fraction=0.0),
        RigL("80%", fraction=0.0),
    ):
        model, _, step = training(recipe, 12)
        for _ in range(12):
            step()
        weights.append(model[0].weight.to_dense().detach())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
