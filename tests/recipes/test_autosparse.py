"""AutoSparse: thresholds that are learned, and the projection at the end."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.masks import check_mask
from gossamer.nn import SparseLinear
from gossamer.nn.layers.threshold import ThresholdLinear
from gossamer.patterns import Unstructured
from gossamer.recipes.autosparse import AutoSparse
from support.learned_course import PATTERNS, batch, masters, net, run, start


def thresholded(weight: Tensor, s: Tensor, alpha: float) -> Tensor:
    """w~ by torch's own autograd, with a leaky derivative where it is pruned."""
    margin = weight.abs() - s.sigmoid()
    leaky = torch.where(margin > 0, margin, alpha * margin)
    # The value of relu, the slope of the leaky one.
    return weight.sign().detach() * (leaky + (margin.clamp_min(0) - leaky).detach())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("per", ["channel", "layer"])
def test_autosparse_gradients(alpha: float, per: Any) -> None:
    torch.manual_seed(1)
    dense = nn.Linear(12, 10, dtype=torch.float64)
    layer = ThresholdLinear.from_dense(dense, "75%", None, per)
    layer.alpha.fill_(alpha)
    x = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    x2 = x.detach().clone().requires_grad_()
    weight, s, bias = (
        p.detach().clone().requires_grad_() for p in (layer.weight, layer.threshold, layer.bias)
    )
    assert s.shape == ((10, 1) if per == "channel" else (1, 1))
    want = F.linear(x2, thresholded(weight, s, alpha), bias)
    got = layer(x)
    torch.testing.assert_close(got, want)
    upstream = torch.randn_like(got)
    got.backward(upstream)
    want.backward(upstream)
    for mine, theirs in ((x, x2), (layer.weight, weight), (layer.threshold, s), (layer.bias, bias)):
        torch.testing.assert_close(mine.grad, theirs.grad)
    pruned = weight.abs() <= s.sigmoid()
    assert 0 < int(pruned.sum()) < weight.numel()
    assert bool((layer.weight.grad[pruned] == 0).all()) == (alpha == 0.0)


def test_autosparse_density_is_the_thresholds() -> None:
    layer = ThresholdLinear.from_dense(net()[0], "75%", -2.0)
    before = layer.weight.detach().clone()
    kept = []
    for s in (-8.0, -2.0, 0.0, 5.0):
        layer.threshold.data.fill_(s)
        layer(torch.randn(3, 16))
        cut = 1 / (1 + math.exp(-s))
        assert layer.nnz == int((before.abs() > cut).sum())
        assert torch.equal(layer.mask(), before.abs() > cut)
        kept.append(layer.nnz)
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[1] > kept[-1] == 0
    start = ThresholdLinear.from_dense(net()[0], "75%", None)
    start(torch.randn(3, 16))
    assert set(start.mask().sum(1).tolist()) == {4}  # a quarter of 16, in every channel


@pytest.mark.parametrize("reset", [0.9, 0.5, 1.0])
def test_autosparse_alpha_falls_to_zero(reset: float) -> None:
    recipe = AutoSparse("75%", reset_share=reset)
    recipe.total_steps = 200
    alphas = [recipe.alpha_at(t) for t in range(201)]
    assert alphas[0] == pytest.approx(0.75)
    assert all(a >= b for a, b in pairwise(alphas))
    assert all((a == 0.0) == (t >= 200 * reset) for t, a in enumerate(alphas))
    u = 0.25
    cosine, logistic = (1 + math.cos(math.pi * u)) / 2, 1 - 1 / (1 + math.exp(6 - 12 * u))
    assert alphas[50] == pytest.approx(0.75 * max(cosine, logistic))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_autosparse_projects_to_the_pattern(pattern: str) -> None:
    recipe = AutoSparse(pattern, initial_threshold=None, finetune_share=0.3)
    model, optimizer = start(recipe, 20)
    groups = optimizer.param_groups
    assert [g["weight_decay"] for g in groups] == [0.01, 0.0]
    assert all(p.shape[1] == 1 for p in groups[1]["params"])
    assert len(groups[1]["params"]) == 2
    thresholds = [p.detach().clone() for p in groups[1]["params"]]
    run(recipe, model, optimizer, 0, 14)
    assert not any(torch.equal(a, b) for a, b in zip(thresholds, groups[1]["params"], strict=True))
    assert recipe.project_step == 14
    held = [m.mask() for m in masters(model)]
    for layer, mask in zip(masters(model), held, strict=True):
        check_mask(mask, pattern)
        assert layer.projected
        assert not layer.weight[~mask].any()
    before = [m.weight.detach().clone() for m in masters(model)]
    run(recipe, model, optimizer, 14, 20)
    for layer, mask, old in zip(masters(model), held, before, strict=True):
        assert torch.equal(layer.mask(), mask)
        assert not layer.weight[~mask].any()
        assert not torch.equal(layer.weight, old)
    x = batch(99)[0]
    y = model(x)
    sparse = recipe.finish(model)
    assert all(isinstance(sparse[i], SparseLinear) for i in (0, 2))
    torch.testing.assert_close(sparse(x), y)


def test_autosparse_projection_keeps_the_function_where_it_can() -> None:
    layer = ThresholdLinear.from_dense(net()[0], "50%", -3.0)
    layer.threshold.data.fill_(-1.5)
    x = torch.randn(4, 16)
    before = layer(x)
    assert layer.density < 0.5
    layer.project()
    torch.testing.assert_close(layer(x), before)
    assert layer.density == 0.5


def test_autosparse_without_projection_has_its_own_density() -> None:
    recipe = AutoSparse("75%", finetune_share=0.0)
    model, optimizer = start(recipe, 10)
    run(recipe, model, optimizer, 0, 10)
    assert recipe.project_step is None
    for layer in masters(model):
        assert isinstance(layer.pattern, Unstructured)
        assert layer.nnz == layer.pattern.count(*layer.weight.shape) != layer.weight.numel() / 4


def test_autosparse_loaded_after_the_projection_holds_its_mask() -> None:
    layer = ThresholdLinear.from_dense(net()[0], "75%", None)
    layer.project()
    other = ThresholdLinear.from_dense(net(seed=3)[0], "75%", None)
    assert other.reselect_each_forward
    other.load_state_dict(layer.state_dict())
    assert not other.reselect_each_forward
    assert torch.equal(other.mask(), layer.mask())
