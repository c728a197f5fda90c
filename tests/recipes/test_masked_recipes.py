"""STE, SR-STE and progressive gradient flow: what each promises about masks and weights."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import PatternError, RecipeError
from gossamer.masks import mask_difference
from gossamer.nn import MaskedLinear
from gossamer.patterns import NM, parse_pattern
from gossamer.recipes import FST, SRSTE, SSTE, STE, BiMask, MaskDecay, Recipe, StructureDecay
from support.recipe_course import attached, take_step

pytestmark = pytest.mark.usefixtures("one_thread")


def network(width: int = 32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, 8))


def fit(
    recipe: Recipe, steps: int, lr: float = 0.05, optimizer: type = torch.optim.SGD
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A prepared, attached model."""
    return attached(recipe, network(), steps, optimizer, rescale=True, lr=lr)


def batches(count: int, width: int = 32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    teacher = torch.randn(8, width, generator=generator) / width**0.5
    found = []
    for _ in range(count):
        x = torch.randn(64, width, generator=generator)
        found.append((x, x @ teacher.T + 0.3 * torch.randn(64, 8, generator=generator)))
    return found


@pytest.mark.parametrize("pattern", ["1:4", "2:8", "2:4:v4", "75%", "block 4x4 50%"])
def test_srste_is_the_papers_formula(pattern: str) -> None:
    lr, decay = 0.1, 0.5
    recipe = SRSTE(pattern, decay=decay)
    model, optimizer = fit(recipe, 4, lr)
    for x, y in batches(4):
        before = model[0].weight.detach().clone()
        take_step(model, optimizer, x, y)
        kept = model[0].mask()
        assert kept.sum() == parse_pattern(pattern).count(*before.shape)
        expected = before - lr * (model[0].weight.grad + decay * before * ~kept)
        torch.testing.assert_close(model[0].weight.detach(), expected)
        # The kept entries get the straight-through step alone, bit for bit.
        plain = before.sub(model[0].weight.grad, alpha=lr)
        assert torch.equal(model[0].weight.detach()[kept], plain[kept])


def test_srste_reads_the_rate_of_the_schedule_and_leaves_frozen_layers_alone() -> None:
    recipe = SRSTE("1:4", decay=0.5)
    model = recipe.prepare(network())
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}], lr=0.1
    )
    recipe.attach(model, optimizer, total_steps=3)
    before = [model[i].weight.detach().clone() for i in (0, 2)]
    take_step(model, optimizer, *batches(1)[0])
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[2].weight, before[1])
    optimizer.zero_grad()
    after = model[2].weight.detach().clone()
    optimizer.step()  # no gradient, as of a layer that is frozen for a while
    assert torch.equal(model[2].weight, after)


def test_srste_without_decay_is_ste_bit_for_bit() -> None:
    ends = []
    for recipe in (STE("2:8"), SRSTE("2:8", decay=0.0)):
        model, optimizer = fit(recipe, 20, optimizer=torch.optim.AdamW)
        for x, y in batches(20):
            take_step(model, optimizer, x, y)
        ends.append(model)
    assert all(map(torch.equal, *(list(m.parameters()) for m in ends)))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_decay_makes_fewer_entries_change_places(optimizer: type) -> None:
    """SAD with lambda > 0 is smaller than with lambda = 0, from the same seed."""
    lr = 0.3 if optimizer is torch.optim.SGD else 0.02
    sad = {}
    for decay in (0.0, 5.0):
        model, steps_of = fit(SRSTE("2:8", decay=decay), 80, lr, optimizer)
        total = 0
        for number, (x, y) in enumerate(batches(80)):
            before = [layer.structure for layer in (model[0], model[2])]
            take_step(model, steps_of, x, y)
            if number:
                after = [layer.structure for layer in (model[0], model[2])]
                total += sum(map(mask_difference, before, after))
        sad[decay] = total
    assert 0 < sad[5.0] < 0.8 * sad[0.0]


def test_masked_entries_come_back() -> None:
    """The mask is that of the current weight: straight-through gradients move it."""
    model, optimizer = fit(STE("2:8"), 40, 0.3)
    first = model[0].mask()
    for x, y in batches(40):
        weight = model[0].weight.detach().clone()
        take_step(model, optimizer, x, y)
        groups = weight.abs().view(16, 4, 8)
        largest = torch.zeros_like(groups, dtype=torch.bool)
        largest.scatter_(-1, groups.topk(2).indices, True)
        assert torch.equal(model[0].mask(), largest.view(16, 32))
    assert (model[0].mask() & ~first).any()


@pytest.mark.parametrize("kind", ["linear", "exponential"])
def test_mask_decay_fades_monotonically_from_dense_to_the_pattern(kind: str) -> None:
    recipe = MaskDecay("2:8", method=kind, dense_share=0.2, finetune_share=0.25)
    model, optimizer = fit(recipe, 20)
    seen = []
    for x, y in batches(20):
        seen.append(model[0].masked_weight_share.item())
        dense = nn.functional.linear(x, model[0].weight, model[0].bias)
        out = model[0](x)
        w = model[0].weight.detach()
        mask = parse_mask(w, 2, 8)
        soft = torch.where(mask, w, w * seen[-1])
        torch.testing.assert_close(out, nn.functional.linear(x, soft, model[0].bias))
        assert torch.equal(out, dense) == (seen[-1] == 1.0)
        take_step(model, optimizer, x, y)
    assert seen[:5] == [1.0] * 5
    assert seen[15:] == [0.0] * 5
    assert all(a > b > 0.0 for a, b in pairwise(seen[4:15]))
    rate = (1.0 if kind == "linear" else 10.0) / 11
    middle = 1 - rate * 3 if kind == "linear" else math.exp(-rate * 3)
    assert seen[7] == pytest.approx(middle)


def parse_mask(weight: Tensor, n: int, m: int) -> Tensor:
    groups = weight.abs().view(len(weight), -1, m)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    return mask.scatter_(-1, groups.topk(n).indices, True).view(weight.shape)


def test_mask_decay_takes_the_papers_rates() -> None:
    exponential = MaskDecay("1:8", method="exponential", rate=1e-4, finetune_share=0.0)
    assert exponential.masked_weight_share_at(10_000, 100_000) == pytest.approx(0.3679, abs=1e-4)
    linear = MaskDecay("1:8", rate=1e-4, finetune_share=0.0)
    assert (
        linear.masked_weight_share_at(9_999, 100_000)
        > 0.0
        == linear.masked_weight_share_at(10_000, 100_000)
    )
    fast = MaskDecay("1:8", rate=8e-4, finetune_share=0.0)
    assert (
        fast.masked_weight_share_at(1_249, 10_000)
        > 0.0
        == fast.masked_weight_share_at(1_250, 10_000)
    )


def test_mask_decay_hard_is_ste_bit_for_bit() -> None:
    """D = 0 throughout: the rate is so high that one step does it, and the first is dense."""
    ends = []
    for recipe in (STE("2:8"), MaskDecay("2:8", rate=2.0)):
        model, optimizer = fit(recipe, 20)
        for layer in (model[0], model[2]):
            layer.masked_weight_share.zero_()
        for x, y in batches(20):
            take_step(model, optimizer, x, y)
        ends.append(model)
    assert all(map(torch.equal, *(list(m.parameters()) for m in ends)))


@pytest.mark.parametrize(
    ("target", "kind", "windows"),
    [
        ("1:8", "stepwise", "7:8 4:8 2:8 1:8"),
        ("2:8", "stepwise", "7:8 4:8 2:8"),
        ("1:4:v4", "stepwise", "3:4:v4 2:4:v4 1:4:v4"),
        ("2:4", "stepwise", "3:4 2:4"),
        ("4:64", "stepwise", "63:64 32:64 16:64 8:64 4:64"),
        ("1:2", "stepwise", "1:2 1:2"),
        ("1:8", "geometric", "8:64 4:32 2:16 1:8"),
        ("1:4", "geometric", "8:32 4:16 2:8 1:4"),
        ("3:5:v8", "geometric", "24:40:v8 12:20:v8 6:10:v8 3:5:v8"),
    ],
)
def test_windows(target: str, kind: str, windows: str) -> None:
    recipe = StructureDecay(target, method=kind)
    assert [str(p) for p in recipe.patterns] == windows.split()
    assert recipe.patterns[-1] == recipe.pattern
    if kind == "stepwise":
        assert len(recipe.patterns) == math.log2(recipe.pattern.m / recipe.pattern.n) + 1
        assert recipe.patterns == sorted(recipe.patterns, key=lambda p: -p.density)
    else:
        assert len({p.density for p in recipe.patterns}) == 1


@pytest.mark.parametrize(("target", "kind"), [("1:8", "stepwise"), ("1:4", "geometric")])
def test_each_window_holds_its_pattern_for_its_steps(target: str, kind: str) -> None:
    recipe = StructureDecay(target, method=kind, dense_share=0.1, finetune_share=0.1)
    model = recipe.prepare(network(64), exclude="2")
    optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.05)
    recipe.attach(model, optimizer, total_steps=20)
    windows, kept = [], set()
    for x, y in batches(20, 64):
        layer = model[0]
        dense = torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
        windows.append("dense" if dense else str(layer.pattern))
        if not dense:
            n, m = parse_pattern(windows[-1]).n, parse_pattern(windows[-1]).m
            assert bool((layer.mask().view(16, -1, m).sum(-1) == n).all())
            kept.add(layer.nnz)
        take_step(model, optimizer, x, y)
    texts = [str(p) for p in recipe.patterns]
    lengths = [windows.count(text) for text in ["dense", *texts]]
    count = len(texts)
    assert windows == sorted(windows, key=["dense", *texts].index)
    assert lengths[0] == 2
    assert sum(lengths) == 20
    assert lengths[-1] >= 16 // count + 2
    assert max(lengths[1:-1]) - min(lengths[1:-1]) <= 1
    assert len(kept) == (1 if kind == "geometric" else count)


def test_schedules_need_enough_steps() -> None:
    for recipe in (StructureDecay("1:8"), StructureDecay("1:8", dense_share=0.5)):
        least = recipe.minimum_steps()
        assert least == (4 if recipe.dense_share == 0.0 else 7)
        model = recipe.prepare(network(64), exclude="2")
        optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.1)
        with pytest.raises(RecipeError, match=f"at least {least} steps"):
            recipe.attach(model, optimizer, total_steps=least - 1)
        recipe.attach(model, optimizer, total_steps=least)
        assert {recipe.window_at(t, least) for t in range(least)} - {None} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SRSTE("2:4", decay=-1.0), "at least 0"),
        (lambda: SRSTE("2:4", decay=float("nan")), "at least 0"),
        (lambda: MaskDecay("2:4", method="cubic"), "linear or exponential"),
        (lambda: MaskDecay("2:4", rate=0.0), "above 0"),
        (lambda: MaskDecay("2:4", dense_share=1.0), "dense_share"),
        (lambda: MaskDecay("2:4", dense_share=0.5, finetune_share=0.5), "below 1"),
        (lambda: StructureDecay("2:6"), "power of two"),
        (lambda: StructureDecay("3:8"), "power of two"),
        (lambda: StructureDecay("4:4"), "power of two"),
        (lambda: StructureDecay("1:16", method="geometric"), "windows from 1 to 3"),
        (lambda: StructureDecay("1:8", method="geometric", windows=0), "windows from 1 to 4"),
        (lambda: StructureDecay("1:8", method="sideways"), "stepwise or geometric"),
    ],
)
def test_bad_settings_are_refused(make: object, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        make()


def test_a_pattern_that_is_not_n_of_m_is_refused_as_by_every_recipe_of_such_patterns() -> None:
    for recipe in (StructureDecay, FST, BiMask, SSTE):
        with pytest.raises(PatternError, match=r"90%.*n:m|90%.*N:M"):
            recipe("90%")


def test_a_layer_too_narrow_for_the_first_window_is_named() -> None:
    model = network()
    recipe = StructureDecay("1:8", method="geometric")
    with pytest.raises(PatternError, match=r"layer '0'.*8:64.*windows=") as raised:
        recipe.prepare(model)
    assert "multiple of 64" in str(raised.value)
    assert isinstance(model[0], nn.Linear)
    StructureDecay("1:8", method="geometric", windows=2).prepare(model)
    assert isinstance(model[0], MaskedLinear)


@pytest.mark.slow
def test_recipes_learn() -> None:
    """Each ends below half of its first loss."""
    for recipe in (STE("2:4"), SRSTE("2:4"), MaskDecay("2:4"), StructureDecay("2:4")):
        model, optimizer = fit(recipe, 200, 0.01, torch.optim.AdamW)
        losses = [take_step(model, optimizer, x, y) for x, y in batches(200)]
        assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
        sparse = recipe.finish(model)
        assert sparse[0].weight.pattern == NM(2, 4)
        x, _ = batches(1)[0]
        assert sparse(x).isfinite().all()
