"""A training small enough for a test, by any recipe of the registry, and what it computed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.nn import MaskedLinear, SparseLinear
from gossamer.recipes import Recipe
from gossamer.recipes.base.registry import RECIPES, make

STEPS = 24
SPARSITY = 75
# Schedules that fit into so few steps: every mask moves, every adapter is inserted.
# --8<-- [start:options]
OPTIONS: dict[str, dict[str, Any]] = {
    "slope": {"every": 5},
    "slope-adapters": {"adapter_rank": 2, "adapter_share": 0.3, "every": 5},
    "srste": {"gradient_decay": 0.1},
    "fst": {"gradient_decay": 0.1, "every": 5},
    "fst-sparse": {"gradient_decay": 0.1, "every": 5},
    "bimask": {"gradient_decay": 0.1, "every": 5, "candidates": 5},
    "set": {"every": 3},
    "rigl": {"every": 3},
    "cht": {"every": 3},
    "cht-soft": {"every": 3},
    "hebbian": {"every": 3},
    "gmp": {"every": 2},
    "gmp-sparse": {"every": 2},
    "hypersparse": {"lam": 1e-3},
}
# --8<-- [end:options]


def network(seed: int = 0) -> nn.Sequential:
    """Three layers, of which the last stays dense."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 8)
    )


def batch(t: int, rank: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one step."""
    generator = torch.Generator().manual_seed(1000 * rank + t)
    x = torch.randn(16, 32, generator=generator)
    return x, x[:, :8].abs() - x[:, 8:16]


def attached(
    recipe: Recipe,
    model: nn.Module,
    steps: int,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    rescale: bool = False,
    **options: Any,
) -> tuple[nn.Module, Any]:
    """A prepared model and its optimizer, with the recipe attached."""
    model = recipe.prepare(model, rescale=rescale)
    steps_of = optimizer(recipe.parameters(model), **{"lr": 1e-2, **options})
    recipe.attach(model, steps_of, total_steps=steps)
    return model, steps_of


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    """One step on the mean squared error; the loss before it."""
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()


def training(
    recipe: Recipe,
    steps: int = 20,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    **options: Any,
) -> tuple[nn.Module, Any, Callable[[], float]]:
    """A model of two layers, its optimizer, and a function that takes one step on one batch."""
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)).double()
    model, steps_of = attached(recipe, model, steps, optimizer, **options)
    x, y = torch.randn(16, 32).double(), torch.randn(16, 16).double()
    return model, steps_of, lambda: take_step(model, steps_of, x, y)


class Course:
    """A recipe, its model and its optimizer, and the losses of their steps so far."""

    def __init__(
        self,
        name: str,
        seed: int = 0,
        steps: int = STEPS,
        attach: bool = True,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        pattern: str | None = None,
        scale_lr: float = 0.0,
        **options: Any,
    ) -> None:
        self.recipe: Recipe = make(
            name,
            pattern or RECIPES[name].patterns[SPARSITY],
            **{**OPTIONS.get(name, {}), **options},
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.model = self.recipe.prepare(network(seed), exclude=["4"])
        self.steps = steps
        self.optimizer = torch.optim.AdamW(
            self.recipe.parameters(self.model, scale_lr), lr=1e-2, weight_decay=0.01
        )
        self.outer = wrap(self.model) if wrap is not None else self.model
        if attach:
            self.recipe.attach(self.outer, self.optimizer, steps)
        self.losses: list[float] = []

    def step(self, t: int, rank: int = 0) -> None:
        x, y = batch(t, rank)
        loss = (self.outer(x) - y).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())

    def run(self, first: int = 0, last: int | None = None) -> Course:
        for t in range(first, self.steps if last is None else last):
            self.step(t)
        return self

    def state(self) -> dict[str, Any]:
        parts = {"recipe": self.recipe, "model": self.model, "optimizer": self.optimizer}
        return {name: part.state_dict() for name, part in parts.items()}

    def load(self, state: dict[str, Any]) -> None:
        self.recipe.load_state_dict(state["recipe"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def bits(value: Any) -> Any:
    """A nested state in which tensors are their bytes: equal means equal in every bit."""
    if isinstance(value, Tensor):
        value = value.detach().contiguous()
        return str(value.dtype), tuple(value.shape), value.reshape(-1).view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    return value


def parts_of(model: nn.Module) -> dict[str, MaskedLinear | SparseLinear]:
    """The layers that have a mask."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, MaskedLinear | SparseLinear)
    }


def mask_of(part: MaskedLinear | SparseLinear) -> Tensor:
    return part.mask() if isinstance(part, MaskedLinear) else part.weight.mask()
