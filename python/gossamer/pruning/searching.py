"""Random search over masks: the neutral baseline of everything that chooses masks."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.arguments import Steps, check
from gossamer.masks import Distribution
from gossamer.nn.globs import Globs
from gossamer.patterns import Pattern
from gossamer.pruning.essential import number_of, sparse_copy

__all__ = ["RandomSearch", "random_scores", "random_search"]


@dataclass(frozen=True)
class RandomSearch:
    """What a random search has found.

    Args:
        seed: of the best mask.
        values: of all masks, in the order of their seeds.
        first: seed of the first.
    """

    seed: int
    values: tuple[float, ...]
    first: int = 0

    @property
    def value(self) -> float:
        """The value of the best mask."""
        return self.values[self.seed - self.first]

    def score(self, name: str, weight: Tensor) -> Tensor:
        """Return scores of the best mask: pass this function to `sparsify(score=...)`."""
        check(RandomSearch.score, locals())
        return random_scores(self.seed)(name, weight)


def random_scores(seed: int) -> Callable[[str, Tensor], Tensor]:
    """Return a function of (name, weight) that returns random scores, the same each time.

    Args:
        seed: of the scores of all layers.

    Example:
        >>> score = random_scores(3)
        >>> torch.equal(score("0", torch.ones(2, 4)), score("0", torch.zeros(2, 4)))
        True
    """
    check(random_scores, locals())

    def score(name: str, weight: Tensor) -> Tensor:
        mixed = (seed * 0x9E3779B97F4A7C15 + zlib.crc32(name.encode())) % 2**63
        random = torch.Generator("cpu").manual_seed(mixed)
        return torch.rand(weight.shape, generator=random, dtype=torch.float64, device="cpu")

    return score


def random_search(
    model: nn.Module,
    pattern: str | Pattern,
    evaluate: Callable[[nn.Module], Any],
    tries: Steps = 32,
    seed: int = 0,
    distribution: Distribution = "uniform",
    include: Globs = ("*",),
    exclude: Globs = (),
) -> RandomSearch:
    """Draw random masks of a pattern, and keep the best.

    The paper finds that the best of many masks trains no better than any: so a method that chooses
    masks should be compared with it.

    Args:
        model: any module; it does not change.
        pattern: a pattern or its text.
        evaluate: returns the value of a sparse copy of the model, one number of which less is
            better; it may train the copy.
        tries: number of masks.
        seed: of the first mask; the others have the next ones.
        distribution: how layers share the sparsity, as in `gossamer.sparsify`.
        include: globs of the modules to cut.
        exclude: globs of the modules to leave dense.

    Returns:
        The best mask's seed and scores, and all values. A NaN is never the best.

    Raises:
        ArgumentError: `evaluate` returns no number, or the model cannot be copied.
        PatternError: a layer does not fit the pattern.

    Reference:
        Farahani 2024, "Random Search as a Baseline for Sparse Neural Network Architecture Search".

    Example:
        >>> import gossamer
        >>> model = nn.Sequential(nn.Linear(8, 8, bias=False))
        >>> found = random_search(model, "2:4", lambda m: -m(torch.ones(8)).sum().item(), tries=4)
        >>> sparse = gossamer.sparsify(model, "2:4", score=found.score)
        >>> abs(sparse(torch.ones(8)).sum().item() + found.value) < 1e-4
        True
    """
    check(random_search, locals())
    values = []
    for number in range(tries):
        sparse = sparse_copy(
            model, "random_search", pattern, include, exclude,
            distribution=distribution, score=random_scores(seed + number),
        )  # fmt: skip
        values.append(number_of(evaluate, sparse, "random_search"))
    best = min(range(tries), key=lambda i: math.inf if math.isnan(values[i]) else values[i])
    return RandomSearch(seed + best, tuple(values), seed)
