"""FST: fully sparse training with transposable masks.

A mask that is N:M along rows and columns serves both products with the weight; it follows the
dense weight every `refresh_every` steps. What it prunes decays through the gradient, so that Adam
normalises the decay as it does the gradient:

    grad += decay (1 - M) * W     after clipping, before the optimizer

The weight gradient is taken from an unbiased 2:4 sample of dY, and the last part of the training
is dense.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from gossamer.errors import PatternError, RecipeError
from gossamer.masks import add_pruned_, mask_difference
from gossamer.masks.transposable import TileMethod, transposable_mask
from gossamer.nn.layers.base import plain_groups
from gossamer.nn.layers.sampled import SampledLinear
from gossamer.patterns import NM, Pattern, as_integer
from gossamer.recipes.recipe import Recipe
from gossamer.recipes.sampled import parse_sample

_METHODS = ("auto", "exact", "entropy")


@dataclass(eq=False)
class FST(Recipe):
    """Transposable N:M masks with masked decay, sampled weight gradients and a dense end.

    Args:
        pattern: N:M without shared rows. Sizes of a layer must be multiples of m both ways.
        decay: alpha of the masked decay; published: 6e-5 (GPT-2 124M, 774M), 2e-4 (350M, 1558M).
        refresh_every: optimizer steps between two choices of the mask.
        dense_finetune: last share of the training in which the whole weight is used, in [0, 1).
            The trained model is then dense; 0 keeps it sparse to the end.
        mvue: n:m of the sample of dY along the tokens; None takes the whole dY.
        seed: of the samples.
        method: how a tile is chosen: "exact" (m = 4), "entropy", or "auto".

    Raises:
        PatternError: the pattern or the sample is not plain N:M, or the method is unknown.
        RecipeError: a number is out of range.

    Reference:
        Hu et al. 2024, "Accelerating Transformer Pre-training with 2:4 Sparsity",
        arXiv 2404.01847; masked decay: equation 9; masks of Hubara et al. 2021.

    Example:
        >>> import torch
        >>> recipe = FST("2:4", refresh_every=20)
        >>> model = recipe.prepare(torch.nn.Sequential(torch.nn.Linear(8, 4)))
        >>> model[0].density
        0.5
    """

    decay: float = 6e-5
    refresh_every: int = 40
    dense_finetune: float = 1 / 6
    mvue: str | NM | None = "2:4"
    seed: int = 0
    method: TileMethod = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        plain_groups(self.pattern, "FST")
        self.mvue: NM | None = parse_sample(self.mvue, "FST")
        self.refresh_every = as_integer(self.refresh_every, "FST got refresh_every")
        self.seed = as_integer(self.seed, "FST got seed")
        if self.method not in _METHODS:
            raise PatternError(
                f"FST got method={self.method!r}; the mask must keep exactly n in each row: "
                f"choose {', '.join(_METHODS)}"
            )
        for name, good, needed in (
            ("decay", 0 <= self.decay < math.inf, "a number that is not negative"),
            ("refresh_every", self.refresh_every >= 1, "at least 1"),
            ("dense_finetune", 0 <= self.dense_finetune < 1, "in [0, 1)"),
            ("seed", 0 <= self.seed < 2**64, "in [0, 2**64)"),
        ):
            if not good:
                raise RecipeError(f"FST got {name}={getattr(self, name)}; it must be {needed}")

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer whose mask is transposable, and held."""
        kept = plain_groups(pattern, "FST")
        rows = linear.out_features if isinstance(linear, nn.Linear) else linear.nf
        if int(rows) % kept.m:  # type: ignore[arg-type]
            raise PatternError(
                f"FST got out_features={rows} with pattern {pattern}; a "
                f"transposable mask needs a multiple of {kept.m} both ways: choose another m, or "
                "exclude the layer (exclude=...)"
            )
        layer = SampledLinear.from_dense(linear, kept, False, self.mvue, self.seed, index)
        layer.set_mask(self._choose(layer.weight, kept))
        return layer

    def start(self) -> None:
        """No flips yet."""
        self.state["flip_rates"] = torch.zeros(len(self.layers), dtype=torch.float64)

    @property
    def dense_from(self) -> int:
        """The first step that uses the whole weight; `total_steps` when there is none."""
        # A hair above, so that a sixth of 6 steps is one.
        return self.total_steps - int(self.total_steps * self.dense_finetune + 1e-9)

    @property
    def flip_rates(self) -> dict[str, float]:
        """By layer, the share of entries whose mask changed at the last refresh, in [0, 1]."""
        rates = self.state.get("flip_rates")
        return {} if rates is None else dict(zip(self.layers, rates.tolist(), strict=True))

    def before_step(self, t: int) -> None:
        """Add the masked decay to the gradients; a whole mask prunes nothing and adds nothing."""
        for _, _, layer in self.of_type(SampledLinear):
            if self.decay and layer.weight.grad is not None:
                add_pruned_(layer.weight.grad, layer.weight, self.decay, layer.structure)

    def after_step(self, t: int) -> None:
        """Refresh the masks; or let go of them when the dense end begins."""
        done = t + 1
        if done >= self.dense_from and self.dense_from < self.total_steps:
            if done == self.dense_from:
                self._let_go()
        elif done % self.refresh_every == 0:
            self._refresh()

    def _let_go(self) -> None:
        for _, _, layer in self.of_type(SampledLinear):
            # A mask of everything, so that density and `finish` say what is used.
            m = plain_groups(layer.pattern, "FST").m
            layer.set_mask(torch.ones_like(layer.weight, dtype=torch.bool), NM(m, m))
            layer.softness.fill_(1.0)

    def _refresh(self) -> None:
        for index, _, layer in self.of_type(SampledLinear):
            before = layer.structure
            layer.set_mask(self._choose(layer.weight, plain_groups(layer.pattern, "FST")))
            flips = mask_difference(before, layer.structure)
            self.state["flip_rates"][index] = flips / max(layer.weight.numel(), 1)

    def _choose(self, weight: torch.Tensor, pattern: NM) -> torch.Tensor:
        return transposable_mask(weight.detach(), pattern.n, pattern.m, method=self.method)


__all__ = ["FST"]
