"""Soups: averages of models of one mask."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import gossamer
from gossamer import ArgumentError, StructureError, recipes
from gossamer.optim import barrier, greedy_soup, soup


def model_of(pattern: str = "75%", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Linear(32, 8))
    return gossamer.sparsify(model, pattern, exclude="3")


def siblings(count: int, pattern: str = "75%") -> list[nn.Module]:
    """Models of one mask, trained on other batches."""
    start = model_of(pattern)
    models = [copy.deepcopy(start) for _ in range(count)]
    for seed, model in enumerate(models):
        random = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 16, generator=random)).square().mean().backward()
            optimizer.step()
    return models


@pytest.mark.parametrize("pattern", ["75%", "2:4:v4", "block 8x8 50%"])
def test_a_soup_is_the_mean_of_dense_weights_and_as_sparse(pattern: str) -> None:
    models = siblings(3, pattern)
    before = [copy.deepcopy(model.state_dict()) for model in models]
    made = soup(models, [0.5, 0.3, 0.2])
    dense = [gossamer.densify(copy.deepcopy(model)) for model in models]
    expected = sum(s * m[0].weight for s, m in zip([0.5, 0.3, 0.2], dense, strict=True))
    torch.testing.assert_close(made[0].weight.to_dense(), expected)
    assert made[0].weight.nnz == models[0][0].weight.nnz
    assert torch.equal(made[0].mask(), models[0][0].mask())
    torch.testing.assert_close(made[3].bias, soup(dense, [0.5, 0.3, 0.2])[3].bias)
    assert torch.equal(made[1].running_mean, models[0][1].running_mean)
    for model, state in zip(models, before, strict=True):
        for key, value in model.state_dict().items():
            assert torch.equal(value, state[key])
    made(torch.randn(4, 16)).sum().backward()
    assert made[0].weight.values.grad.shape == made[0].weight.values.shape


def test_bfloat16_is_summed_in_float32() -> None:
    models = [nn.Linear(1, 1, bias=False, dtype=torch.bfloat16) for _ in range(3)]
    for model, value in zip(models, (256.0, 1.0, 1.0), strict=True):
        model.weight.data.fill_(value)
    assert soup(models).weight.item() == torch.tensor(258.0 / 3).bfloat16().item()


def test_a_greedy_soup_is_the_best_of_its_kind() -> None:
    models = siblings(4)
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(9))

    def score(model: nn.Module) -> float:
        model.eval()
        with torch.no_grad():
            return -float(model(x).square().mean())

    found = greedy_soup(models, score)
    order = sorted(range(4), key=lambda i: -score(models[i]))
    members, best = [order[0]], score(models[order[0]])
    for i in order[1:]:
        tried = score(soup([models[k] for k in [*members, i]]))
        if tried >= best:
            members, best = [*members, i], tried
    assert (found.members, found.score) == (members, best)
    assert found.score == score(found.model) >= max(map(score, models))


def test_the_barrier_of_a_double_well() -> None:
    one, other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    one.weight.data.fill_(-1.0)
    other.weight.data.fill_(1.0)
    assert barrier(one, other, lambda m: (m.weight.item() ** 2 - 1) ** 2) == pytest.approx(1.0)
    assert barrier(one, other, lambda m: m.weight.item()) == pytest.approx(0.0, abs=1e-6)
    slope = barrier(one, other, lambda m: (m.weight.item() ** 2 - 1) ** 2 + 3 * m.weight.item(), 3)
    assert slope == pytest.approx(1.0)


def differing() -> list[nn.Module]:
    model = model_of()
    other = copy.deepcopy(model)
    other[0].weight.set_mask(other[0].mask().roll(1, 0))
    return [model, other]


def chosen_by_weight() -> list[nn.Module]:
    model = recipes.STE("2:4").prepare(nn.Sequential(nn.Linear(8, 8)))
    return [model, copy.deepcopy(model)]


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: soup([]), ArgumentError, "at least one"),
        (lambda: soup(siblings(2), [1.0]), ArgumentError, "one per model"),
        (lambda: soup(siblings(2), [0.5, 0.6]), ArgumentError, "sum 1"),
        (lambda: soup(differing()), StructureError, "masks of layer '0' differ"),
        (lambda: soup([model_of("75%"), model_of("50%")]), StructureError, "values in one model"),
        (lambda: soup([nn.Linear(2, 2), nn.Linear(2, 3)]), ArgumentError, "one architecture"),
        (lambda: soup([nn.Linear(2, 2), nn.Linear(2, 2, bias=False)]), ArgumentError, "architect"),
        (lambda: soup(chosen_by_weight()), StructureError, "finish"),
        (lambda: barrier(*siblings(2), lambda _: 0.0, points=1), ArgumentError, "at least 2"),
        (lambda: greedy_soup(differing(), lambda _: 1 / 0), StructureError, "differ"),
    ],
)
def test_what_does_not_fit_is_refused(
    make: Callable[[], Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        make()


def test_masks_of_layers_that_keep_dense_weights_are_compared() -> None:
    recipe = recipes.GMP("75%")
    model = recipe.prepare(nn.Sequential(nn.Linear(8, 8)))
    other = copy.deepcopy(model)
    for one in (model, other):
        one[0].set_mask(torch.rand(8, 8).argsort(1) < 2, gossamer.Unstructured(0.75))
    with pytest.raises(StructureError, match="differ"):
        soup([model, other])
    other[0].set_mask(model[0].mask(), gossamer.Unstructured(0.75))
    made = soup([model, other])
    assert torch.equal(made[0].mask(), model[0].mask())


def test_the_order_of_models_does_not_matter_much() -> None:
    models = siblings(3)
    reference = soup(models)[0].weight.values
    for order in itertools.permutations(models):
        torch.testing.assert_close(soup(order)[0].weight.values, reference)
