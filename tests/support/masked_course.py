"""A noisy linear teacher, on which recipes that mask dense weights are tested."""

import torch
from torch import Tensor, nn

from gossamer.patterns import parse_pattern
from gossamer.recipes import Recipe
from support.recipe_course import attached, take_step


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


def largest(weight: Tensor, n: int, m: int) -> Tensor:
    """The n largest of every m, by topk: the oracle."""
    groups = weight.abs().view(len(weight), -1, m)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    return mask.scatter_(-1, groups.topk(n).indices, True).view(weight.shape)


def check_learns(recipe: Recipe) -> None:
    """Training ends below half of its first loss, and its finished model is sparse."""
    model, optimizer = fit(recipe, 200, 0.01, torch.optim.AdamW)
    losses = [take_step(model, optimizer, x, y) for x, y in batches(200)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    sparse = recipe.finish(model)
    assert sparse[0].weight.pattern == parse_pattern("2:4")
    x, _ = batches(1)[0]
    assert sparse(x).isfinite().all()
