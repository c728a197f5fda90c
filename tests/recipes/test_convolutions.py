"""Recipes on convolutions: the masks hold, an interrupted training resumes bit for bit."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.errors import PatternError
from gossamer.masks import check_mask
from gossamer.nn import MaskedLayer
from gossamer.nn.layers.convolution import SparseConv
from gossamer.recipes.base.registry import RECIPES, make
from tests.support.recipe_course import OPTIONS, SPARSITY, bits

STEPS, CUT = 12, 5
# What each recipe makes of a convolution; the others leave it dense.
TAKES = sorted(
    name for name in RECIPES if make(name, RECIPES[name].patterns[SPARSITY]).takes_convolutions()
)
LEAVES = sorted(set(RECIPES) - set(TAKES) - {"sparse-ift-wide"})  # that takes pairs only


def _network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 2, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 8),
    )  # fmt: skip


def _batch(t: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(6, 16, 4, 4, generator=generator)
    return x, x[:, :8].mean((2, 3)).abs()


class _Course:
    def __init__(self, name: str, seed: int = 0) -> None:
        options = {**OPTIONS.get(name, {}), **({"every": 2} if name == "gmp-sparse" else {})}
        self.recipe = make(name, RECIPES[name].patterns[SPARSITY], **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.model = self.recipe.prepare(_network(seed), exclude=["5"])
        self.optimizer = torch.optim.AdamW(self.recipe.parameters(self.model), lr=1e-2)
        self.recipe.attach(self.model, self.optimizer, STEPS)

    def run(self, first: int, last: int) -> list[float]:
        losses = []
        for t in range(first, last):
            x, y = _batch(t)
            loss = (self.model(x) - y).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
            for layer in self.model.modules():
                if isinstance(layer, MaskedLayer):
                    backend.validate(layer.structure)
                    check_mask(layer.mask(), layer.pattern)
        return losses

    def parts(self) -> dict[str, Any]:
        return {"recipe": self.recipe, "model": self.model, "optimizer": self.optimizer}

    def state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts().items()}


@pytest.mark.parametrize("name", TAKES)
def test_masks_hold_and_a_resumed_training_is_the_same(name: str) -> None:
    course = _Course(name)
    masked = [m for m in course.model.modules() if isinstance(m, MaskedLayer)]
    assert len(masked) == 2
    course.run(0, CUT)
    saved = copy.deepcopy(course.state())
    losses = course.run(CUT, STEPS)
    again = _Course(name, seed=3)
    for part, own in again.parts().items():
        own.load_state_dict(saved[part])
    assert again.run(CUT, STEPS) == losses
    assert bits(again.state()) == bits(course.state())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = course.recipe.finish(course.model)
    assert all(isinstance(model[i], SparseConv) for i in (0, 2))  # type: ignore[index]
    assert model(_batch(0)[0]).isfinite().all()


@pytest.mark.parametrize("name", LEAVES)
def test_the_others_leave_it_dense(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 32))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        make(name, RECIPES[name].patterns[SPARSITY]).prepare(model)
    assert type(model[0]) is nn.Conv2d
    assert any("0 (convolutions" in str(one.message) for one in told)


def test_filters_that_do_not_fit_are_named_and_the_model_stays() -> None:
    model = _network()
    model[0] = nn.Conv2d(3, 16, 3, padding=1)
    with pytest.raises(PatternError, match=r"'0' .*3 input channels(.|\n)*exclude="):
        make("srste", pattern="2:4").prepare(model)
    assert type(model[0]) is type(model[2]) is nn.Conv2d


def test_whole_filters_are_pruned() -> None:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.Flatten())
    recipe = make("gmp", "block 1x72 50%", every=2)
    with pytest.warns(UserWarning, match="read nothing"):
        model = recipe.prepare(model)
    optimizer = torch.optim.AdamW(recipe.parameters(model), lr=1e-2)
    recipe.attach(model, optimizer, STEPS)
    for _ in range(STEPS):
        loss = model(torch.randn(2, 8, 4, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    layer: Any = model[0]  # type: ignore[index]
    whole = layer.mask().sum(1)
    assert sorted(whole.tolist()) == [0] * 8 + [72] * 8
    assert not layer.weight[whole == 0].any()
    with pytest.warns(UserWarning, match="read nothing"):
        sparse: Any = recipe.finish(model)
    filters = sparse[0].filters()
    assert [bool(f.any()) for f in filters] == [bool(n) for n in whole]
