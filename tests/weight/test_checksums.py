"""A state dict names the mask that it was saved with: other valid indices are noticed."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import RecipeError, SparseLinear, StructureError
from gossamer.masks import random_mask
from gossamer.nn import MaskedLinear
from gossamer.recipes import SET, RigL
from gossamer.weight.guard import checksum_of

PATTERNS = ["2:4", "75%", "2:4:v4", "block 4x4 50%", "2:4:g4"]
KINDS: dict[str, Callable[[str], nn.Module]] = {
    "sparse": lambda pattern: SparseLinear(16, 8, pattern=pattern),
    "masked": lambda pattern: MaskedLinear.from_dense(nn.Linear(16, 8), pattern, False),
}


def made(kind: str, pattern: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(KINDS[kind](pattern))


def mixed(kind: str, pattern: str) -> tuple[nn.Sequential, dict[str, Tensor]]:
    """A model, and its state with the valid indices of another mask."""
    model, other = made(kind, pattern), made(kind, pattern)
    layer = other[0]
    move = layer.set_mask if kind == "masked" else layer.weight.set_mask
    move(random_mask((8, 16), pattern, seed=9))
    state, theirs = copy.deepcopy(model.state_dict()), other.state_dict()
    for name in state:
        if name.endswith(("indices", "indptr")):
            state[name] = theirs[name].clone()
    return model, state


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", KINDS)
def test_indices_of_another_mask_are_refused(kind: str, pattern: str) -> None:
    model, state = mixed(kind, pattern)
    kept = copy.deepcopy(model.state_dict())
    calls = [
        lambda: model.load_state_dict(state),
        lambda: gossamer.check_state(model, state),
        lambda: gossamer.load(state, model),
    ]
    if kind == "sparse":
        calls.append(lambda: gossamer.load(state, nn.Sequential(nn.Linear(16, 8))))
    for call in calls:
        with pytest.raises(StructureError, match="checksums differ"):
            call()
    assert all(torch.equal(a, kept[name]) for name, a in model.state_dict().items())


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", KINDS)
def test_states_of_earlier_versions_are_read(kind: str, pattern: str) -> None:
    model, state = mixed(kind, pattern)
    for name in state:
        if name.endswith("descriptor"):
            state[name][0] &= 0xFF  # without a checksum
    gossamer.load(state, model)
    assert torch.equal(
        next(b for n, b in model.named_buffers() if n.endswith("indices")),
        next(b for n, b in state.items() if n.endswith("indices")),
    )
    again = copy.deepcopy(model.state_dict())  # which has one
    name = next(name for name in again if name.endswith("descriptor"))
    indices, indptr = (
        again.get(name.replace("descriptor", part)) for part in ("indices", "indptr")
    )
    assert int(again[name][0]) >> 8 == checksum_of((indices, indptr)) != 0
    made(kind, pattern).load_state_dict(again)


@pytest.mark.parametrize("kind", KINDS)
def test_the_checksum_is_that_of_the_present_mask(kind: str) -> None:
    model = made(kind, "2:4")
    layer = model[0]
    for seed in range(3):
        move = layer.set_mask if kind == "masked" else layer.weight.set_mask
        move(random_mask((8, 16), "2:4", seed=seed))
        made(kind, "2:4").load_state_dict(model.state_dict())
        assert torch.equal(copy.deepcopy(layer).mask(), layer.mask())


def test_a_mask_that_is_selected_anew_has_none() -> None:
    layer = MaskedLinear.from_dense(nn.Linear(16, 8), "2:4", False)
    assert int(layer.descriptor[0]) >> 8
    layer.reselect_each_forward = True
    with torch.no_grad():
        layer.weight.copy_(layer.weight.flip(1))
    layer(torch.randn(2, 16))
    assert not int(layer.descriptor[0]) >> 8
    MaskedLinear.from_dense(nn.Linear(16, 8), "2:4").load_state_dict(layer.state_dict())


def test_a_recipe_refuses_masks_of_another_step() -> None:
    def prepared(recipe: SET) -> tuple[nn.Sequential, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = recipe.prepare(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)))
        optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.1)
        recipe.attach(model, optimizer, total_steps=20)
        return model, optimizer

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()

    recipe = RigL("75%", every=2)
    model, optimizer = prepared(recipe)
    states = {}
    for t in range(6):
        states[t] = copy.deepcopy((recipe.state_dict(), model.state_dict()))
        step(model, optimizer)
    assert not torch.equal(states[3][1]["0.weight.indices"], states[5][1]["0.weight.indices"])
    for saved, loaded in [(5, 5), (5, 3), (5, None), (4, 3), (2, 1)]:
        again = RigL("75%", every=2)
        model, optimizer = prepared(again)
        again.load_state_dict(states[saved][0])
        if loaded is not None:
            model.load_state_dict(states[loaded][1])
        masks = [state["0.weight.indices"] for _, state in (states[saved], states[loaded or 0])]
        if torch.equal(*masks):
            step(model, optimizer)
            continue
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(RecipeError, match=r"mask of '0\.weight'.*same step"):
            step(model, optimizer)
        assert all(torch.equal(a, before[name]) for name, a in model.state_dict().items())
    old = states[5][0]
    del old["masks"]  # of an earlier version
    again = RigL("75%", every=2)
    model, optimizer = prepared(again)
    again.load_state_dict(old)
    step(model, optimizer)
