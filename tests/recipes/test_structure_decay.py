"""StructureDecay: the windows of patterns, and the steps that each gets."""

import math

import pytest
import torch
from torch import nn

from gossamer.errors import PatternError, RecipeError
from gossamer.nn import MaskedLinear
from gossamer.patterns import parse_pattern
from gossamer.recipes import FST, SSTE, BiMask, StructureDecay
from support.masked_course import batches, check_learns, network
from support.recipe_course import take_step

pytestmark = pytest.mark.usefixtures("one_thread")


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
def test_it_learns() -> None:
    check_learns(StructureDecay("2:4"))
