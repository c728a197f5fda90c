"""BiMask: a backward mask of column groups under a permutation of rows, chosen for overlap."""

import copy
import itertools

import pytest
import torch
from torch import nn

from gossamer.errors import PatternError, RecipeError
from gossamer.masks import double_prune_mask, magnitude_mask
from gossamer.nn.layers.bimask import BiMaskLinear, overlap
from gossamer.patterns import parse_pattern
from gossamer.recipes.bimask import BiMask

PATTERNS = [("2:4", 2, 4), ("1:4", 1, 4), ("2:8", 2, 8), ("1:16", 1, 16)]


def prepared(text, rows=32, cols=48, **options):
    recipe = BiMask(text, **options)
    model = recipe.prepare(nn.Sequential(nn.Linear(cols, rows)))
    optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.1)
    return recipe, model, optimizer


def oracle(weight, order, n, m):
    """The backward mask by sorting: top n of every m permuted rows of what the row mask keeps."""
    row = magnitude_mask(weight, f"{n}:{m}")
    permuted = (weight * row)[order]
    missing = -len(order) % m
    padded = nn.functional.pad(permuted, (0, 0, 0, missing))
    groups = padded.abs().reshape(-1, m, weight.shape[1])
    rank = groups.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    kept = (rank < n) & (groups > 0)
    kept = kept.reshape(-1, weight.shape[1])[: len(order)]
    mask = torch.empty_like(kept)
    mask[order] = kept
    return mask


@pytest.mark.parametrize("rows", [32, 30])
@pytest.mark.parametrize(("text", "n", "m"), PATTERNS)
def test_backward_mask_is_column_groups_of_the_forward_mask(text, n, m, rows):
    recipe, model, optimizer = prepared(text, rows, candidates=20)
    layer = model[0]
    assert isinstance(layer, BiMaskLinear)
    # The rows as they are: plain double pruning.
    assert torch.equal(layer.backward_mask(), double_prune_mask(layer.weight, n, m))
    recipe.attach(model, optimizer, total_steps=1)
    assert sorted(layer.order.tolist()) == list(range(rows))
    backward = layer.backward_mask()
    assert torch.equal(backward, oracle(layer.weight.detach(), layer.order, n, m))
    assert not (backward & ~layer.mask()).any()
    x = torch.randn(10, 48, requires_grad=True)
    y = layer(x)
    g = torch.randn_like(y)
    y.backward(g)
    assert torch.allclose(x.grad, g @ (layer.weight.detach() * backward), atol=1e-5)
    assert torch.allclose(layer.weight.grad, g.t() @ x, atol=1e-4)
    forward = nn.functional.linear(x, layer.weight * layer.mask(), layer.bias)
    assert torch.allclose(y, forward, atol=1e-5)


@pytest.mark.parametrize(("text", "n", "m"), PATTERNS)
def test_choice_maximises_overlap(text, n, m):
    recipe, model, optimizer = prepared(text, 64, 96, candidates=30, seed=4)
    layer, pattern = model[0], parse_pattern(text)
    present = layer.order
    recipe.attach(model, optimizer, total_steps=1)
    mask = layer.mask()
    generator = recipe.generator(0, 0, 4)
    tried = [present] + [torch.randperm(64, generator=generator) for _ in range(30)]
    shares = [float(oracle(layer.weight.detach(), order, n, m).sum()) for order in tried]
    assert [overlap(mask, order, pattern) for order in tried] == shares
    assert torch.equal(layer.order, tried[max(range(31), key=shares.__getitem__)])
    assert recipe.overlaps == {"0": max(shares) / float(mask.sum())}
    assert max(shares) > shares[0]
    # What a random order loses is the share that double pruning loses.
    average = sum(shares) / len(shares) / float(mask.sum())
    lost = {"2:4": 0.1875, "1:4": 0.316, "2:8": 0.234, "1:16": 0.356}[text]
    assert 1 - average == pytest.approx(lost, abs=0.03)


@pytest.mark.parametrize("text", ["1:4", "2:8"])
def test_order_is_chosen_every_so_many_steps(text):
    recipe, model, optimizer = prepared(text, every=3, candidates=10)
    recipe.attach(model, optimizer, total_steps=12)
    orders = [model[0].order]
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.randn(16, 48)).square().sum().backward()
        optimizer.step()
        orders.append(model[0].order)
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(orders)]
    assert not any(m for t, m in enumerate(moved) if (t + 1) % 3)
    assert any(moved)
    assert 0 < recipe.overlaps["0"] <= 1


def test_forward_mask_follows_the_weight_at_every_step():
    recipe, model, optimizer = prepared("2:8")
    recipe.attach(model, optimizer, total_steps=3)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(16, 48)).square().sum().backward()
        assert torch.equal(model[0].mask(), magnitude_mask(model[0].weight, "2:8"))
        optimizer.step()


@pytest.mark.parametrize("text", ["2:4", "1:4"])
def test_decay_of_pruned_entries(text):
    weights = []
    for decay in (0.0, 0.5):
        torch.manual_seed(1)
        recipe, model, optimizer = prepared(text, gradient_decay=decay, candidates=2)
        recipe.attach(model, optimizer, total_steps=1)
        start, mask = model[0].weight.detach().clone(), model[0].mask()
        torch.manual_seed(2)
        model(torch.randn(16, 48)).square().mean().backward()
        optimizer.step()
        weights.append(model[0].weight.detach())
    expected = weights[0] - 0.1 * 0.5 * torch.where(mask, 0.0, start)
    assert torch.equal(weights[1][mask], weights[0][mask])
    assert torch.allclose(weights[1], expected, atol=1e-7)
    assert BiMask().gradient_decay == 2e-4


@pytest.mark.parametrize("cut", [2, 3, 5])
def test_resume_is_no_interruption(cut):
    def build(seed):
        torch.manual_seed(seed)
        recipe, model, _ = prepared("1:4", every=3, candidates=5)
        optimizer = torch.optim.AdamW(recipe.parameters(model), lr=0.05)
        recipe.attach(model, optimizer, total_steps=8)
        return recipe, model, optimizer

    def run(model, optimizer, first, last):
        for t in range(first, last):
            x = torch.randn(12, 48, generator=torch.Generator().manual_seed(t))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    recipe, model, optimizer = build(3)
    run(model, optimizer, 0, cut)
    saved = copy.deepcopy((recipe.state_dict(), model.state_dict(), optimizer.state_dict()))
    run(model, optimizer, cut, 8)
    again, other, second = build(4)  # another start, so that all must come from the state
    for part, state in zip((again, other, second), saved, strict=True):
        part.load_state_dict(state)
    assert torch.equal(other[0].order, saved[1]["0.order"])
    run(other, second, cut, 8)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    # The order is used for dX alone, which one layer does not need: compare it by itself.
    assert torch.equal(other[0].order, model[0].order)
    assert again.overlaps == recipe.overlaps


def test_gradient_stays_close_to_the_exact_one():
    """Cosine of dX: 0.963 for plain double pruning of a Gaussian at 2:4."""
    torch.manual_seed(0)
    recipe, model, optimizer = prepared("2:4", 256, 256)
    layer = model[0]
    layer.weight.data.normal_()
    recipe.attach(model, optimizer, total_steps=1)
    x = torch.zeros(128, 256, requires_grad=True)
    g = torch.randn(128, 256)
    layer(x).backward(g)
    exact = g @ layer.used_weight()
    cosine = nn.functional.cosine_similarity(x.grad.flatten(), exact.flatten(), dim=0)
    assert 0.955 < float(cosine) < 0.995


def test_bad_input():
    for build, error in [
        (lambda: BiMask("2:4:v4"), PatternError),
        (lambda: BiMask("50%"), PatternError),
        (lambda: BiMask(gradient_decay=-1.0), RecipeError),
        (lambda: BiMask(every=0), RecipeError),
        (lambda: BiMask(candidates=-1), RecipeError),
        (lambda: BiMask("2:8").prepare(nn.Linear(12, 4)), PatternError),
    ]:
        with pytest.raises(error):
            build()
