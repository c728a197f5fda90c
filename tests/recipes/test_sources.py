"""Source masks and EdgePopup: what is searched stays inside, and equals the plain formula."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import DTypeError, PatternError, RecipeError
from gossamer.nn import MaskedLayer, MaskedLinear
from gossamer.nn.layers.popup import PopupLinear
from gossamer.recipes import GMP, STE, EdgePopup
from gossamer.recipes.base.registry import RECIPES, make
from support.recipe_course import OPTIONS, SPARSITY, STEPS, batch, bits, network, take_step

STORE_KEPT = {"slope", "slope-adapters", "static", "static-erk", "set", "rigl", "gmp-sparse"}
STORE_KEPT |= {"cht", "cht-soft", "hebbian"}
REFUSE = STORE_KEPT | {"dsl"} | {name for name in RECIPES if name.startswith("sparse-ift")}
INSIDE = [name for name in RECIPES if name not in REFUSE]


def prepared(name: str, source: Any, **options: Any) -> tuple[Any, nn.Module, Any]:
    recipe = make(name, RECIPES[name].patterns[SPARSITY], **{**OPTIONS.get(name, {}), **options})
    torch.manual_seed(3)
    model = recipe.prepare(network(), exclude=["4"], source=source)
    optimizer = torch.optim.AdamW(recipe.parameters(model), lr=1e-2)
    recipe.attach(model, optimizer, STEPS)
    return recipe, model, optimizer


def source_for(name: str) -> str:
    return "2:4" if ":" in RECIPES[name].patterns[SPARSITY] else "60%"


@pytest.mark.parametrize("name", INSIDE)
def test_nothing_outside_the_source_ever_takes_part(name: str, one_thread: None) -> None:
    recipe, model, optimizer = prepared(name, source_for(name))
    sources = recipe.sources
    assert sorted(sources) == ["0", "2"]
    kept = 0.5 if ":" in source_for(name) else 0.4
    assert all(
        mask.double().mean().item() == pytest.approx(kept, abs=1e-3) for mask in sources.values()
    )
    for t in range(STEPS):
        take_step(model, optimizer, *batch(t))
        for at, layer in recipe.layers.items():
            assert isinstance(layer, MaskedLayer)
            assert not layer.entries[~sources[at]].any()
            assert not layer.used_weight()[~sources[at]].any()
    model = recipe.finish(model)
    for at, mask in sources.items():
        assert not model.get_submodule(at).used_weight()[~mask].any()  # type: ignore[operator]


@pytest.mark.parametrize("name", sorted(REFUSE))
def test_recipes_that_search_no_dense_weight_refuse_a_source(name: str) -> None:
    model = network()
    before = copy.deepcopy(model)
    with pytest.raises(RecipeError, match=r"got source=.*score="):
        make(name, RECIPES[name].patterns[SPARSITY]).prepare(model, exclude=["4"], source="50%")
    assert bits(model.state_dict()) == bits(before.state_dict())


@pytest.mark.parametrize("name", ["imp", "edge-popup", "srste"])
def test_a_resumed_search_stays_in_the_saved_source(name: str, one_thread: None) -> None:
    def steps(parts: Any, first: int, last: int) -> list[float]:
        return [take_step(parts[1], parts[2], *batch(t)) for t in range(first, last)]

    whole = prepared(name, source_for(name))
    steps(whole, 0, 7)
    saved = copy.deepcopy([part.state_dict() for part in whole])
    expected = steps(whole, 7, STEPS)
    torch.manual_seed(77)
    recipe = make(name, RECIPES[name].patterns[SPARSITY], **OPTIONS.get(name, {}))
    model = recipe.prepare(network(5), exclude=["4"], source=source_for(name))  # another mask
    optimizer = torch.optim.AdamW(recipe.parameters(model), lr=1e-2)
    recipe.attach(model, optimizer, STEPS)
    for part, state in zip((recipe, model, optimizer), saved, strict=True):
        part.load_state_dict(state)
    assert steps((recipe, model, optimizer), 7, STEPS) == expected
    assert bits(recipe.sources) == bits(whole[0].sources)


def test_a_source_of_everything_changes_nothing(one_thread: None) -> None:
    whole = {"0": torch.ones(64, 32, dtype=torch.bool), "2": torch.ones(32, 64, dtype=torch.bool)}
    for name in ("gmp", "srste", "edge-popup"):
        runs = []
        for source in (None, whole):
            _, model, optimizer = prepared(name, source)
            runs.append([take_step(model, optimizer, *batch(t)) for t in range(8)])
        assert runs[0] == runs[1]


def test_bad_sources_leave_the_model_as_it_was() -> None:
    model = network()
    before = bits(model.state_dict())
    cases: list[tuple[Any, str, str]] = [
        ("80%", "75%", "choose a denser source"),
        ("50%", "2:4", "choose a denser source, or one such as"),
        ({"0": torch.ones(64, 32, dtype=torch.bool)}, "75%", "has no mask of this name"),
    ]
    for source, pattern, message in cases:
        with pytest.raises(PatternError, match=message):
            GMP(pattern).prepare(model, exclude=["4"], source=source)
        assert bits(model.state_dict()) == before
    with pytest.raises(DTypeError, match="source"):
        STE("75%").prepare(model, source={"0": torch.ones(64, 32), "2": torch.ones(32, 64)})


class Oracle:
    """Edge-popup by plain torch: weights are frozen, scores trained straight through."""

    def __init__(self, constants: Tensor, scores: Tensor, kept: int) -> None:
        self.constants, self.scores, self.kept = constants, scores.clone(), kept

    def mask(self) -> Tensor:
        least = self.scores.abs().flatten().sort(descending=True).values[self.kept - 1]
        return self.scores.abs() >= least

    def step(self, x: Tensor, grad_output: Tensor, lr: float) -> Tensor:
        y = x @ (self.mask() * self.constants).t()
        straight = (grad_output.t() @ x) * self.constants
        self.scores -= lr * straight * self.scores.sign()
        return y


def test_edge_popup_is_its_formula() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(16, 8).double()
    dense = linear.weight.detach().clone()
    model = EdgePopup("75%", seed=4).prepare(nn.Sequential(linear))
    layer = model[0]
    assert isinstance(layer, PopupLinear)
    size = (2.0 / (16 * 0.25)) ** 0.5
    assert torch.equal(layer.constants, torch.where(dense < 0, -size, size).double())
    assert layer.bias is not None
    assert not layer.bias.requires_grad
    oracle = Oracle(layer.constants, layer.weight.detach(), 32)
    optimizer = torch.optim.SGD([layer.weight], lr=0.05)
    masks = set()
    for _ in range(20):
        x, grad = torch.randn(4, 16).double(), torch.randn(4, 8).double()
        expected = oracle.step(x, grad, 0.05)
        y = layer(x)
        torch.testing.assert_close(y - layer.bias, expected)
        optimizer.zero_grad()
        y.backward(grad)
        optimizer.step()
        torch.testing.assert_close(layer.weight.detach(), oracle.scores)
        masks.add(str(layer.mask().tolist()))
    assert len(masks) > 5
    assert torch.equal(layer.constants, torch.where(dense < 0, -size, size).double())


def test_edge_popup_of_initial_weights_and_convolutions() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    weights = [model[0].weight.detach().clone(), model[3].weight.detach().clone()]
    recipe = EdgePopup("50%", constants="initial")
    x = torch.randn(3, 2, 6, 6)
    model = recipe.prepare(model)
    optimizer = torch.optim.SGD(recipe.parameters(model), lr=1.0)
    recipe.attach(model, optimizer, 5)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    expected = model(x)
    model = recipe.finish(model)
    torch.testing.assert_close(model(x), expected)
    found = [model[0].to_dense().weight, model[3].to_dense().weight]
    for weight, was in zip(found, weights, strict=True):
        assert int((weight != 0).sum()) == was.numel() // 2
        assert torch.equal(weight[weight != 0], was[weight != 0])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_popup_layer_refuses_to_be_dense_and_bad_options() -> None:
    layer = EdgePopup().prepare(nn.Linear(8, 8))
    with pytest.raises(PatternError, match="to_sparse"):
        layer.set_dense()
    with pytest.raises(RecipeError, match="signed or initial"):
        EdgePopup(constants="random")  # type: ignore[arg-type]
    assert isinstance(layer, MaskedLinear)
