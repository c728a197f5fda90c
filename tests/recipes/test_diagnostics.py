"""Diagnostics: each number against a count by hand."""

import json

import pytest
import torch
from torch import nn

from gossamer.errors import RecipeError
from gossamer.masks import double_prune_mask
from gossamer.patterns import Unstructured
from gossamer.recipes import SRSTE, STE, Diagnostics, MaskDecay, Recipe, StructureDecay
from gossamer.recipes.diagnostics import flips_between
from gossamer.recipes.slope import SLoPe


def attached(recipe: Recipe, width: int = 64) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = recipe.prepare(nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, 16)))
    optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.5)
    recipe.attach(model, optimizer, total_steps=10)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    (model(torch.randn(32, 64, requires_grad=True)) ** 2).sum().backward()
    optimizer.step()


def test_density_and_target() -> None:
    recipe = StructureDecay("1:8")
    model, _ = attached(recipe)
    found = Diagnostics(recipe).measure()
    assert found["density"] == 7 / 8
    assert found["density_target"] == 1 / 8
    assert found["layers"]["2"]["density"] == 7 / 8
    recipe = STE("90%")
    model, _ = attached(recipe)
    model[0].set_mask(torch.arange(64 * 32).view(32, 64) % 2 == 0, Unstructured(0.5))
    found = Diagnostics(recipe).measure()
    sizes = [64 * 32, 32 * 16]
    assert found["layers"]["0"]["density"] == 0.5
    assert found["density"] == pytest.approx((sizes[0] / 2 + model[2].nnz) / sum(sizes))
    assert found["density_target"] == pytest.approx(0.1)


def test_a_soft_mask_uses_every_entry() -> None:
    recipe = MaskDecay("2:8", finetune_share=0.5)
    model, optimizer = attached(recipe)
    diagnostics = Diagnostics(recipe)
    assert diagnostics.measure()["density"] == 1.0
    for _ in range(5):
        step(model, optimizer)
    assert diagnostics.measure()["density"] == 0.25


def test_flips_are_counted_between_two_calls() -> None:
    recipe = SRSTE("2:8")
    model, optimizer = attached(recipe)
    diagnostics = Diagnostics(recipe)
    before = [model[i].mask() for i in (0, 2)]
    for _ in range(2):
        step(model, optimizer)
    after = [model[i].mask() for i in (0, 2)]
    flips = [int((a ^ b).sum()) for a, b in zip(before, after, strict=True)]
    found = diagnostics.measure()
    assert min(flips) > 0
    assert [found["layers"][n]["flips"] for n in ("0", "2")] == flips
    assert found["flips"] == sum(flips)
    assert found["flip_rate"] == sum(flips) / (64 * 32 + 32 * 16)
    assert found["layers"]["2"]["flip_rate"] == flips[1] / (32 * 16)
    assert diagnostics.measure()["flips"] == 0


def test_flips_are_counted_where_the_mask_is_written_over() -> None:
    recipe = STE("1:4")
    model, _ = attached(recipe)
    diagnostics = Diagnostics(recipe)
    model[0].indices.add_(torch.where(model[0].indices % 4 == 3, -1, 1).to(torch.uint8))
    assert diagnostics.measure()["layers"]["0"]["flips"] == 2 * model[0].nnz


def test_flips_between_patterns() -> None:
    recipe = STE("3:6")
    torch.manual_seed(0)
    model = recipe.prepare(nn.Sequential(nn.Linear(480, 8)))
    recipe.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=2)
    before, mask = model[0].structure, model[0].mask()
    for pattern in ("2:4", "6:12", "12:48", "2:4:v4", "60%", "block 4x4 50%"):
        model[0].set_pattern(pattern)
        expected = int((mask ^ model[0].mask()).sum())
        assert flips_between(before, model[0].structure) == expected > 0


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "2:8", "2:4:v4"])
@pytest.mark.parametrize("kind", [STE, SLoPe])
def test_survivors_lost_by_double_pruning(pattern: str, kind: type[Recipe]) -> None:
    recipe = kind(pattern)
    model, _ = attached(recipe)
    found = Diagnostics(recipe).measure()
    lost = total = 0
    for name, layer in (("0", model[0]), ("2", model[2])):
        used = layer.used_weight() if kind is STE else layer.weight.to_dense().detach()
        n, m = recipe.pattern.n, recipe.pattern.m
        gone = int(((used != 0) & ~double_prune_mask(used, n, m)).sum())
        assert found["layers"][name]["double_pruned"] == gone / int((used != 0).sum())
        lost, total = lost + gone, total + int((used != 0).sum())
    assert found["double_pruned"] == lost / total > 0.0


def test_double_pruning_has_no_meaning_for_other_patterns() -> None:
    recipe = STE("90%")
    attached(recipe)
    assert "double_pruned" not in Diagnostics(recipe).measure()


def test_cosine_of_the_input_gradient() -> None:
    """1 where the gradient is exact, and the formula's where it is double-pruned."""
    for recipe in (STE("2:8"), SLoPe("2:8", backward="exact"), MaskDecay("2:8")):
        model, _ = attached(recipe)
        diagnostics = Diagnostics(recipe)
        assert "input_cosine" not in diagnostics.measure()
        with diagnostics.watch():
            (model(torch.randn(32, 64, requires_grad=True)) ** 2).sum().backward()
        found = diagnostics.measure()
        assert found["input_cosine"] == pytest.approx(1.0, abs=1e-6)
        assert set(found["layers"]) == {"0", "2"}
        assert found["layers"]["0"]["input_cosine"] == pytest.approx(1.0, abs=1e-6)
        assert "input_cosine" not in diagnostics.measure()

    recipe = SLoPe("2:8", backward="double_pruned")
    model, _ = attached(recipe)
    diagnostics = Diagnostics(recipe)
    x = torch.randn(32, 64, requires_grad=True)
    with diagnostics.watch():
        hidden = model[0](x)
        hidden.retain_grad()
        (model[2](model[1](hidden)) ** 2).sum().backward()
    exact = hidden.grad @ model[0].weight.to_dense().detach()
    expected = nn.functional.cosine_similarity(x.grad.flatten(), exact.flatten(), 0).item()
    found = diagnostics.measure()
    assert found["layers"]["0"]["input_cosine"] == pytest.approx(expected, abs=1e-5)
    assert 0.5 < found["input_cosine"] < 0.99


def test_watching_ends_with_its_block_and_survives_layers_without_a_gradient() -> None:
    recipe = STE("2:8")
    model, optimizer = attached(recipe)
    diagnostics = Diagnostics(recipe)
    with diagnostics.watch():
        (model(torch.randn(32, 64)) ** 2).sum().backward()  # the first input needs none
    assert set(diagnostics._products) == {"2"}
    assert not model[0]._forward_hooks
    step(model, optimizer)
    assert set(diagnostics._products) == {"2"}
    assert "input_cosine" not in diagnostics.measure()["layers"]["0"]


def test_watching_changes_no_training() -> None:
    ends = []
    for watched in (False, True):
        recipe = SRSTE("2:8")
        model, optimizer = attached(recipe)
        diagnostics = Diagnostics(recipe)
        torch.manual_seed(1)
        for _ in range(4):
            if watched:
                with diagnostics.watch():
                    step(model, optimizer)
                diagnostics.measure()
            else:
                step(model, optimizer)
        ends.append(list(model.state_dict().values()))
    assert all(map(torch.equal, *ends))


def test_numbers_are_plain_and_the_recipe_is_attached() -> None:
    recipe = SRSTE("2:8")
    with pytest.raises(RecipeError, match="attach"):
        Diagnostics(recipe)
    model, optimizer = attached(recipe)
    diagnostics = Diagnostics(recipe)
    with diagnostics.watch():
        step(model, optimizer)
    found = diagnostics.measure()
    assert json.loads(json.dumps(found)) == found
    assert all(type(v) in (int, float) for v in found["layers"]["0"].values())


def test_an_input_that_two_layers_share_is_compared_for_each() -> None:
    recipe = STE("2:8")
    torch.manual_seed(0)
    model = recipe.prepare(nn.ModuleList([nn.Linear(64, 32), nn.Linear(64, 32)]))
    recipe.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=2)
    diagnostics = Diagnostics(recipe)
    x = torch.randn(8, 64, requires_grad=True)
    with diagnostics.watch():
        (model[0](x) * model[1](x)).sum().backward()
    for numbers in diagnostics.measure()["layers"].values():
        assert numbers["input_cosine"] == pytest.approx(1.0, abs=1e-6)
