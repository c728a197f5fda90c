"""Recipes and sharpness methods on one optimizer."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gossamer import recipes
from gossamer.nn import MaskedLayer
from gossamer.optim.sharpness import SAM

DTYPE = torch.float64


def closure_of(model: nn.Module, step: int) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        model.zero_grad()
        x = torch.randn(16, 12, generator=torch.Generator().manual_seed(step), dtype=DTYPE)
        loss: Tensor = (model(x) - x[:, :4]).square().mean()
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("name", "pattern"),
    [("set", "75%"), ("rigl", "75%"), ("srste", "2:4"), ("ste", "75%"), ("gmp", "75%"),
     ("bimask", "2:4"), ("fst", "2:4")],
)  # fmt: skip
def test_recipes_see_weights_that_are_not_moved(
    name: str, pattern: str, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pass has the mask of the first one; the order of attaching does not matter."""
    torch.manual_seed(0)
    recipe = recipes.make(name, pattern)
    model = recipe.prepare(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)))
    optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.5)
    sam = SAM(5.0)  # far enough that any mask would change
    if first:
        sam.attach(model, optimizer)
    recipe.attach(model, optimizer, total_steps=12)
    if not first:
        sam.attach(model, optimizer)
    masks: list[list[Tensor]] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))
        loss: Tensor = (model(x) - x).square().mean()
        masks.append([m.mask() for m in model.modules() if isinstance(m, MaskedLayer)])
        loss.backward()
        return loss

    calls: list[int] = []
    original = recipe.before_step

    def before(t: int) -> None:
        calls.append(t)
        original(t)

    monkeypatch.setattr(recipe, "before_step", before)
    for step in range(6):  # noqa: B007 - the closure reads it
        optimizer.step(closure)
        one, two = masks[-2:]
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert calls == list(range(6))  # behind both passes
    assert len(masks) == 12


def with_rigl(sam_first: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    recipe, sam = recipes.RigL("75%", every=2), SAM(0.1)
    model = recipe.prepare(nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 4)))
    model.to(DTYPE)
    optimizer = torch.optim.AdamW(recipe.parameters(model), lr=1e-2)
    if sam_first:
        sam.attach(model, optimizer)
    recipe.attach(model, optimizer, total_steps=40)
    if not sam_first:
        sam.attach(model, optimizer)
    for step in range(8):
        optimizer.step(closure_of(model, step))
    return model.state_dict()


def test_recipe_and_method_commute() -> None:
    one, other = with_rigl(True), with_rigl(False)
    for key, a in one.items():
        assert torch.equal(a, other[key]), key
