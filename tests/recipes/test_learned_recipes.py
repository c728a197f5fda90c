"""HyperSparse, ISSP, Lobster and TopL0: what each does to weights and gradients."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.errors import RecipeError
from gossamer.masks import check_mask, magnitude_mask
from gossamer.patterns import Unstructured
from gossamer.recipes.autosparse import AutoSparse
from gossamer.recipes.base.recipe import Recipe
from gossamer.recipes.hypersparse import HyperSparse, hypersparse_gradient
from gossamer.recipes.issp import ISSP
from gossamer.recipes.lobster import Lobster, insensitivity
from gossamer.recipes.prune_late import PruneLate
from gossamer.recipes.top_l0 import TopL0, top_masks
from support.learned_course import PATTERNS, batch, masters, net, run, start

LATE = [HyperSparse, ISSP, Lobster]


# ---- HyperSparse -------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [1, 5, 16, 39])
def test_hypersparse_gradient_is_of_its_regulariser(kept: int) -> None:
    torch.manual_seed(kept)
    w = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    kappa = w.detach().abs().flatten().sort(descending=True).values[kept]
    slope = torch.tanh(0.6584789484624083 / kappa * w.abs())
    scale = (w.abs().sum() / slope.sum()).detach()
    (slope.sum() * scale).backward()
    torch.testing.assert_close(hypersparse_gradient(w, kept), w.grad, rtol=1e-9, atol=1e-12)


def test_hypersparse_gradient_at_the_edges() -> None:
    w = torch.randn(4, 4)
    assert not hypersparse_gradient(w, 16).any()
    assert not hypersparse_gradient(torch.zeros(4, 4), 4).any()
    assert not hypersparse_gradient(torch.eye(4), 4).any()
    # What will be pruned is pressed harder than what stays.
    size = hypersparse_gradient(w, 4).abs().flatten()
    order = w.abs().flatten().argsort()
    assert (size[order].diff() <= 0).all()


def test_hypersparse_weight_grows_by_a_factor() -> None:
    recipe = HyperSparse("75%", lam=1e-3, growth=100.0, warmup_share=0.2, prune_share=0.7)
    recipe.total_steps = 100
    weights = [recipe.weight_at(t) for t in range(70)]
    assert weights[:20] == [0.0] * 20
    assert weights[20] == pytest.approx(1e-3)
    assert weights[69] == pytest.approx(0.1)
    ratios = [b / a for a, b in pairwise(weights[20:])]
    assert max(ratios) == pytest.approx(min(ratios)) == pytest.approx(100 ** (1 / 49))


def test_hypersparse_adds_to_the_gradients() -> None:
    recipe = HyperSparse("1:4", lam=0.5, growth=1.0, warmup_share=0.0)
    model, optimizer = start(recipe, 10, torch.optim.SGD, lr=0.1)
    first = masters(model)[0]
    seen: dict[str, Tensor] = {}

    def watch(when: str, t: int) -> None:
        if when == "before":
            seen["weight"], seen["grad"] = first.weight.detach().clone(), first.weight.grad.clone()

    run(recipe, model, optimizer, 0, 1, watch)
    want = seen["grad"] + 0.5 * hypersparse_gradient(seen["weight"], 16 * 24 // 4)
    torch.testing.assert_close(first.weight.detach(), seen["weight"] - 0.1 * want)


# ---- ISSP and Lobster --------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_issp_shrinks_only_the_smallest(pattern: str) -> None:
    recipe = ISSP(pattern, prune_share=1.0)
    model, optimizer = start(recipe, 50, torch.optim.SGD, lr=0.0)
    start_weights = [m.weight.detach().clone() for m in masters(model)]
    run(recipe, model, optimizer, 0, 3)
    for layer, w in zip(masters(model), start_weights, strict=True):
        kept = magnitude_mask(w, pattern)
        assert torch.equal(layer.weight[kept], w[kept])
        torch.testing.assert_close(layer.weight[~kept], w[~kept] * 0.95**3)


def test_issp_of_zero_is_hard_thresholding() -> None:
    recipe = ISSP("75%", shrink=0.0)
    model, optimizer = start(recipe, 10)
    run(recipe, model, optimizer, 0, 2)
    for layer in masters(model):
        assert int(layer.weight.count_nonzero()) == layer.target.count(*layer.weight.shape)


def test_lobster_decay() -> None:
    recipe = Lobster("75%", strength=0.7, prune_share=0.7, rescaled=False)
    model, optimizer = start(recipe, 10, torch.optim.SGD, lr=0.1)
    layer = masters(model)[0]
    before = layer.weight.detach().clone()
    with torch.no_grad():
        x, y = batch(0)
    F.mse_loss(model(x), y).backward()
    layer.weight.grad[0] = 7.0
    layer.weight.grad[1] = -0.25
    g = layer.weight.grad.clone()
    optimizer.step()
    moved = torch.add(before, g, alpha=-0.1)
    want = moved - 0.1 * moved * (1 - g.abs()).clamp_min(0)  # 0.7 over 7 steps
    torch.testing.assert_close(layer.weight.detach(), want)
    assert torch.equal(layer.weight[0], moved[0])  # a large gradient: not touched
    torch.testing.assert_close(layer.weight[1].detach(), moved[1] * (1 - 0.1 * 0.75))


def test_lobster_rescaled_spares_the_most_sensitive() -> None:
    g = torch.tensor([[0.01, -0.02], [0.0, 0.005]])
    torch.testing.assert_close(insensitivity(g, True), torch.tensor([[0.5, 0.0], [1.0, 0.75]]))
    assert torch.equal(insensitivity(torch.zeros(3), True), torch.ones(3))


# ---- what the three have in common -------------------------------------------------------------


@pytest.mark.parametrize("kind", LATE)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_dense_then_pruned_then_held(kind: type[PruneLate], pattern: str) -> None:
    recipe = kind(pattern)
    model, optimizer = start(recipe, 20)
    moved = copy.deepcopy(model)
    run(recipe, model, optimizer, 0, 13)
    assert not recipe.pruned
    assert all(m.masked_weight_share == 1.0 for m in masters(model))
    assert all(
        (m.weight != o.weight).all() for m, o in zip(*map(masters, (model, moved)), strict=True)
    )
    expected = []

    def watch(when: str, t: int) -> None:
        if when == "before":
            expected[:] = [m.weight.detach().clone() for m in masters(model)]

    run(recipe, model, optimizer, 13, 14, watch)
    assert recipe.pruned
    held = [m.mask() for m in masters(model)]
    run(recipe, model, optimizer, 14, 20, watch)
    for layer, mask, before in zip(masters(model), held, expected, strict=True):
        check_mask(mask, pattern)
        assert torch.equal(layer.mask(), mask)
        assert not layer.weight[~mask].any()
        assert not layer.weight.grad[~mask].any()
        assert (layer.weight[mask] != before[mask]).all()
    x = batch(0)[0]
    y = model(x)
    torch.testing.assert_close(recipe.finish(model)(x), y)


@pytest.mark.parametrize("kind", LATE)
def test_without_pressure_the_dense_phase_is_plain_training(kind: type[PruneLate]) -> None:
    off = {"shrink": 1.0} if kind is ISSP else {"lam" if kind is HyperSparse else "strength": 0.0}
    recipe = kind("1:4", **off)
    model, optimizer = start(recipe, 20)
    run(recipe, model, optimizer, 0, 10)
    plain = net()
    twin = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    run(recipe, plain, twin, 0, 10)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_finish_before_the_pruning_keeps_the_largest() -> None:
    recipe = ISSP("1:4")
    model, optimizer = start(recipe, 100)
    run(recipe, model, optimizer, 0, 30)
    weight = masters(model)[0].weight.detach().clone()
    layer = recipe.finish(model)[0]
    assert torch.equal(layer.weight.mask(), magnitude_mask(weight, "1:4"))


def test_pruning_when_the_subclass_says_so() -> None:
    class Early(ISSP):
        def is_ready(self, t: int) -> bool:
            return t == 2

    recipe = Early("1:4")
    model, optimizer = start(recipe, 100)
    run(recipe, model, optimizer, 0, 2)
    assert not recipe.pruned
    run(recipe, model, optimizer, 2, 3)
    assert recipe.pruned


# ---- TopL0 -------------------------------------------------------------------------------------


def test_top_masks_against_one_sort() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(6, 8).round(decimals=1), torch.randn(4, 12).round(decimals=1) * 3]
    masks = top_masks(weights, Unstructured(0.7))
    flat = torch.cat([w.abs().flatten() for w in weights])
    order = flat.argsort(descending=True, stable=True)
    want = torch.zeros(len(flat), dtype=torch.bool)
    want[order[:28]] = True  # 14 of 48 each: 0.3 * 48 = 14.4
    assert torch.equal(torch.cat([m.flatten() for m in masks]), want)


@pytest.mark.parametrize("pattern", [*PATTERNS, "block 4x4 75%"])
def test_top_l0_holds_after_every_step(pattern: str) -> None:
    recipe = TopL0(pattern, begin_share=0.0)
    model, optimizer = start(recipe, 12, lr=0.5)
    budget = sum(recipe.pattern.count(*m.weight.shape) for m in masters(model))
    first = [m.mask() for m in masters(model)]

    def watch(when: str, t: int) -> None:
        layers = masters(model)
        assert sum(m.nnz for m in layers) == budget
        for layer in layers:
            check_mask(layer.mask(), layer.pattern)
            assert not layer.weight[~layer.mask()].any()
        if when == "before":
            assert any(m.weight.grad[~m.mask()].any() for m in layers)

    run(recipe, model, optimizer, 0, 12, watch)
    assert any(not torch.equal(m.mask(), f) for m, f in zip(masters(model), first, strict=True))
    if pattern == "75%":
        shares = [m.density for m in masters(model)]
        assert shares[0] != shares[1]
    x = batch(0)[0]
    y = model(x)
    torch.testing.assert_close(recipe.finish(model)(x), y)


def test_top_l0_starts_dense() -> None:
    recipe = TopL0("1:4", begin_share=0.5)
    model, optimizer = start(recipe, 10)
    run(recipe, model, optimizer, 0, 4)
    assert all(m.weight.all() for m in masters(model))
    run(recipe, model, optimizer, 4, 5)
    assert all(int(m.weight.count_nonzero()) == m.weight.numel() // 4 for m in masters(model))


# ---- all ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*LATE, TopL0, AutoSparse])
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


@pytest.mark.parametrize("kind", [*LATE, TopL0, AutoSparse])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_very_short_trainings(kind: type[Recipe], steps: int) -> None:
    recipe = kind("1:4")
    model, optimizer = start(recipe, steps)
    run(recipe, model, optimizer, 0, steps)
    for layer in masters(model):
        check_mask(layer.mask(), "1:4")
        assert int(layer.weight.count_nonzero()) <= layer.weight.numel() // 4
