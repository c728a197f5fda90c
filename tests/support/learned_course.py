"""A tiny training on which the learned recipes are tested."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.nn import MaskedLinear
from gossamer.recipes.base.recipe import Recipe
from support.recipe_course import attached

PATTERNS = ["75%", "1:4", "2:8", "2:4:g1", "75%:v4"]


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))


def batch(t: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + t)
    x = torch.randn(32, 16, generator=generator)
    return x, x[:, :8].sin()


def run(
    recipe: Recipe, model: nn.Module, optimizer: Any, start: int, stop: int, watch: Any = None
) -> None:
    for t in range(start, stop):
        x, y = batch(t)
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        if watch:
            watch("before", t)
        optimizer.step()
        if watch:
            watch("after", t)


def start(
    recipe: Recipe, steps: int, make: Any = torch.optim.AdamW, **options: Any
) -> tuple[nn.Module, Any]:
    return attached(recipe, net(), steps, make, **options)


def masters(model: nn.Module) -> list[MaskedLinear]:
    return [m for m in model.modules() if isinstance(m, MaskedLinear)]
