"""FST: transposable masks, masked decay on gradients, sampled weight gradients, a dense end."""

import copy

import pytest
import torch
from torch import nn

from gossamer.errors import GossamerError, PatternError, RecipeError
from gossamer.masks import check_mask
from gossamer.masks.transposable import is_transposable, transposable_mask
from gossamer.nn.layers.sampled import SampledLinear
from gossamer.ops import mvue_product
from gossamer.recipes.fst import FST

PATTERNS = [("2:4", 2, 4), ("1:4", 1, 4), ("2:8", 2, 8)]


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8))


def trained(recipe, steps, total=None, observe=None, lr=0.05, make=torch.optim.SGD):
    model = recipe.prepare(network())
    optimizer = make(recipe.parameters(model), lr=lr)
    recipe.attach(model, optimizer, total_steps=total or steps)
    torch.manual_seed(5)
    for t in range(steps):
        x = torch.randn(12, 16)
        optimizer.zero_grad()
        (model(x) - x[:, :8]).square().mean().backward()
        optimizer.step()
        if observe:
            observe(t, model)
    return model


@pytest.mark.parametrize(("text", "n", "m"), PATTERNS)
def test_mask_is_transposable_and_serves_both_products(text, n, m):
    model = FST(text, mvue=None).prepare(network())
    layer = model[0]
    assert isinstance(layer, SampledLinear)
    mask = layer.mask()
    assert is_transposable(mask, n, m)
    check_mask(mask, text)
    check_mask(mask.t(), text)  # the same mask serves the transpose
    assert torch.equal(mask, transposable_mask(layer.weight, n, m))
    x = torch.randn(20, 16, requires_grad=True)
    y = layer(x)
    used = torch.where(mask, layer.weight, 0.0)
    assert torch.allclose(y, nn.functional.linear(x, used, layer.bias), atol=1e-5)
    g = torch.randn_like(y)
    y.backward(g)
    assert torch.allclose(x.grad, g @ used, atol=1e-5)
    assert torch.allclose(layer.weight.grad, g.t() @ x, atol=1e-4)


@pytest.mark.parametrize("text", ["2:4", "1:4", "2:8"])
def test_masks_are_refreshed_every_so_many_steps_and_held_between(text):
    recipe = FST(text, every=4, dense_finetune_share=0, gradient_decay=0)
    masks, rates = [], []

    def observe(t, model):
        masks.append(model[0].mask())
        rates.append(recipe.flip_rates["0"])
        if (t + 1) % 4 == 0:
            pattern = recipe.pattern
            assert torch.equal(masks[-1], transposable_mask(model[0].weight, pattern.n, pattern.m))

    trained(recipe, 12, observe=observe, lr=2.0)
    for t in range(1, 12):
        flips = int((masks[t] != masks[t - 1]).sum())
        if (t + 1) % 4:
            assert flips == 0
        else:
            assert rates[t] == flips / masks[t].numel()
    assert rates[2] == 0 < rates[3]


@pytest.mark.parametrize("text", ["2:4", "1:4"])
def test_decay_goes_into_the_gradient_of_pruned_entries_only(text):
    alpha = 0.3
    models = {}
    for decay in (0.0, alpha):
        models[decay] = trained(
            FST(text, gradient_decay=decay, mvue=None, dense_finetune_share=0), 1, lr=0.1
        )
    start = FST(text).prepare(network())
    for name in (0, 2):
        mask, weight = start[name].mask(), start[name].weight.detach()
        plain, decayed = (models[d][name].weight.detach() for d in (0.0, alpha))
        assert torch.equal(plain[mask], decayed[mask])
        expected = plain - 0.1 * alpha * torch.where(mask, 0.0, weight)
        assert torch.allclose(decayed, expected, atol=1e-7)
        assert not torch.equal(decayed, plain)
        assert torch.equal(models[0.0][name].bias, models[alpha][name].bias)


def test_adam_normalises_the_decay():
    """A decay on the gradient moves a pruned entry by lr in Adam's first step, however small."""
    recipe = FST("2:4", gradient_decay=1e-3, mvue=None, dense_finetune_share=0)
    model = recipe.prepare(nn.Sequential(nn.Linear(8, 8)))
    optimizer = torch.optim.Adam(recipe.parameters(model), lr=0.01, eps=1e-12)
    recipe.attach(model, optimizer, total_steps=10)
    before, mask = model[0].weight.detach().clone(), model[0].mask()
    model(torch.zeros(4, 8)).sum().backward()  # the gradient of the weight is zero
    optimizer.step()
    moved = model[0].weight.detach() - before
    assert torch.equal(moved[mask], torch.zeros_like(moved[mask]))
    assert torch.allclose(moved[~mask], -0.01 * before[~mask].sign(), atol=1e-5)


def test_last_sixth_is_dense():
    recipe = FST("1:4", every=2, mvue="2:4")
    seen = []
    model = trained(recipe, 12, observe=lambda t, m: seen.append((t, m[0].density)))
    assert recipe.dense_from == 10
    assert [d for _, d in seen] == [0.25] * 9 + [1.0] * 3  # dense before step 10 is taken
    x = torch.randn(5, 16)
    dense = nn.functional.linear(x, model[0].weight, model[0].bias)
    assert torch.equal(model[0](x), dense)
    model[0].weight.grad = None
    y = model[0](x)
    y.sum().backward()
    assert torch.allclose(model[0].weight.grad, torch.ones(24, 5) @ x, atol=1e-5)
    outputs = model(x)
    finished = recipe.finish(model)  # nothing is cut off after the fact
    assert torch.allclose(finished(x), outputs, atol=1e-5)
    assert finished[0].weight.density == 1.0


def test_without_dense_end_it_stays_sparse():
    recipe = FST("2:4", dense_finetune_share=0)
    model = trained(recipe, 6)
    assert recipe.dense_from == 6
    assert is_transposable(model[0].mask(), 2, 4)
    outputs = model(torch.ones(1, 16))
    assert torch.allclose(recipe.finish(model)(torch.ones(1, 16)), outputs, atol=1e-6)


def test_decay_stops_with_the_mask():
    recipe = FST("2:4", gradient_decay=0.5, mvue=None, dense_finetune_share=5 / 6)
    model = recipe.prepare(network())
    optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.1)
    recipe.attach(model, optimizer, total_steps=6)
    changed = []
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(12, 16)).square().mean().backward()
        before = model[0].weight.grad.clone()
        optimizer.step()
        changed.append(not torch.equal(model[0].weight.grad, before))
    assert recipe.dense_from == 1
    assert changed == [True] + [False] * 5


def test_weight_gradient_is_the_sample_and_draws_move_on():
    layer = FST("2:4", mvue="1:4", seed=7).prepare(network())[2]
    assert layer.index == 1
    x, g = torch.randn(12, 24), torch.randn(12, 8)
    grads = []
    for step in range(3):
        layer.weight.grad = None
        layer(x).backward(g)
        grads.append(layer.weight.grad)
        assert torch.equal(grads[-1], mvue_product(g, x, 1, 4, seed=7, step=step, layer=1))
    assert not torch.equal(grads[0], grads[1])
    assert layer.draws == 3
    twin = FST("2:4", mvue="1:4", seed=7).prepare(network())[2]
    twin.load_state_dict(layer.state_dict())
    for copied in (twin, copy.deepcopy(layer)):
        copied.weight.grad = None
        copied(x).backward(g)
        assert torch.equal(copied.weight.grad, mvue_product(g, x, 1, 4, seed=7, step=3, layer=1))


def test_sampled_training_gets_where_the_whole_gradient_gets():
    losses = {}
    for sample in (None, "2:4"):
        recipe = FST("2:4", mvue=sample, every=10, dense_finetune_share=0)
        model = trained(recipe, 150, lr=0.3)
        x = torch.randn(400, 16, generator=torch.Generator().manual_seed(1))
        losses[sample] = (model(x) - x[:, :8]).square().mean().item()
    assert losses["2:4"] < 0.5  # an untrained network is at 1
    assert losses["2:4"] < losses[None] * 1.5


@pytest.mark.parametrize("cut", [1, 3, 4, 9, 10, 11])
def test_resume_is_no_interruption(cut):
    def build():
        recipe = FST("2:4", every=4)
        model = recipe.prepare(network())
        optimizer = torch.optim.AdamW(recipe.parameters(model), lr=0.05)
        recipe.attach(model, optimizer, total_steps=12)
        return recipe, model, optimizer

    def run(model, optimizer, first, last):
        for t in range(first, last):
            x = torch.randn(12, 16, generator=torch.Generator().manual_seed(t))
            optimizer.zero_grad()
            (model(x) - x[:, :8]).square().mean().backward()
            optimizer.step()

    recipe, model, optimizer = build()
    run(model, optimizer, 0, cut)
    saved = copy.deepcopy((recipe.state_dict(), model.state_dict(), optimizer.state_dict()))
    run(model, optimizer, cut, 12)
    again, other, second = build()
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    second.load_state_dict(saved[2])
    run(other, second, cut, 12)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert again.flip_rates == recipe.flip_rates


def test_bad_input():
    for build, error in [
        (lambda: FST("2:4:v4"), PatternError),
        (lambda: FST("50%"), PatternError),
        (lambda: FST(mvue="50%"), PatternError),
        (lambda: FST(method="greedy"), RecipeError),
        (lambda: FST(gradient_decay=-1.0), RecipeError),
        (lambda: FST(gradient_decay=float("nan")), RecipeError),
        (lambda: FST(every=0), RecipeError),
        (lambda: FST(dense_finetune_share=1.0), RecipeError),
        (lambda: FST(seed=-1), RecipeError),
        (lambda: FST(every=1.5), GossamerError),
    ]:
        with pytest.raises(error):
            build()
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6))
    with pytest.raises(PatternError, match=r"'1'.*out_features=6"):
        FST("2:4").prepare(model)
    assert type(model[0]) is nn.Linear
