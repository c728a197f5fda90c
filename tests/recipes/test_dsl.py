"""DSL: entries that move between layers, and their floor."""

import pytest
import torch
from torch import nn

from gossamer.recipes.dsl import DSL
from support.recipe_course import training


def masks(recipe):
    return [
        layer.mask() if hasattr(layer, "mask") else layer.weight.mask()
        for layer in recipe.layers.values()
    ]


@pytest.mark.parametrize("pattern", ["80%", "75%:v4", "75%:v16", "block 4x4 75%"])
def test_dsl_moves_entries_between_layers_and_keeps_their_total(pattern):
    recipe = DSL(pattern, every=3, fraction=0.5, floor=0.5)
    model, opt, step = training(recipe, 40)
    first = [int(mask.sum()) for mask in masks(recipe)]
    with torch.no_grad():
        model[0].weight.mul_(0.01)
    seen = {tuple(first)}
    for _ in range(40):
        step()
        counts = [int(mask.sum()) for mask in masks(recipe)]
        seen.add(tuple(counts))
        assert sum(counts) == sum(first)
        assert all(now >= 0.5 * then - 16 for now, then in zip(counts, first, strict=True))
        for layer in recipe.layers.values():
            assert not layer.weight[~layer.mask()].any()
            assert not opt.state[layer.weight]["exp_avg"][~layer.mask()].any()
            assert layer.pattern.count(*layer.weight.shape) == int(layer.mask().sum())
    assert len(seen) > 1
    x = torch.randn(4, 32).double()
    before = model(x)
    torch.testing.assert_close(recipe.finish(model)(x), before)


def test_dsl_ranks_all_layers_together():
    recipe = DSL("75%", every=1, end_share=1.0, fraction=0.5, floor=0.0)
    torch.manual_seed(1)
    model = recipe.prepare(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8)).double())
    opt = torch.optim.SGD(recipe.parameters(model), lr=0.0)
    recipe.attach(model, opt, total_steps=10**6)
    x = torch.randn(8, 16).double()
    model(x).square().sum().backward()
    opt.step()
    layers = list(recipe.layers.values())
    full = [nn.Parameter(layer.weight.detach() * layer.mask()) for layer in layers]
    h = torch.tanh(x @ full[0].t() + model[0].bias)
    (h @ full[1].t() + model[2].bias).square().sum().backward()
    size = torch.cat([w.detach().abs().flatten() for w in full])
    gradient = torch.cat([w.grad.abs().flatten() for w in full])
    mask = torch.cat([layer.mask().flatten() for layer in layers])
    total = int(mask.sum())
    stay = torch.zeros_like(mask)
    stay[size.masked_fill(~mask, -1.0).topk(total - total // 2).indices] = True
    grown = gradient.masked_fill(stay, -1.0).topk(total // 2).indices
    opt.zero_grad()
    model(x).square().sum().backward()
    opt.step()
    now = torch.cat([layer.mask().flatten() for layer in layers])
    # cos(pi t / T) at t = 1 is short of 1 by 5e-12: the share rounds down to a half of all.
    stay[grown] = True
    assert (now != stay).sum() <= 4


def test_dsl_leaves_every_layer_its_floor():
    recipe = DSL("80%", every=1, fraction=0.5, floor=0.5)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 16)).double()
    opt = torch.optim.SGD(recipe.parameters(recipe.prepare(model)), lr=0.0)
    recipe.attach(model, opt, total_steps=1000)
    first = model[0].nnz
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    for _ in range(2):
        # Without input the first layer has no gradient, and nothing grows there.
        model(torch.zeros(4, 32).double()).square().sum().backward()
        opt.step()
    assert model[0].nnz == int(0.5 * first)
