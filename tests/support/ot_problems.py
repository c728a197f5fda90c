"""Random transport problems."""

import torch
from torch import Tensor

Problem = tuple[Tensor, Tensor, Tensor]


def problem(n: int, m: int, seed: int = 0, uniform: bool = False) -> Problem:
    """A random cost, and masses that differ from entry to entry."""
    random = torch.Generator().manual_seed(seed)
    cost, a, b = (
        torch.rand(shape, generator=random, dtype=torch.float64) for shape in ((n, m), (n,), (m,))
    )
    if uniform:
        a, b = torch.ones_like(a), torch.ones_like(b)
    a, b = a + 0.2, b + 0.2
    return cost, a / a.sum(), b / b.sum()


def points(n: int, m: int, seed: int = 0) -> Problem:
    """Squared distances in the plane, to a maximum of 1: near-ties everywhere."""
    random = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(size, 2, generator=random, dtype=torch.float64) for size in (n, m))
    cost = torch.cdist(x, y).square()
    _, a, b = problem(n, m, seed)
    return cost / cost.max(), a, b
