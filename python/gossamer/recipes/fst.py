"""FST: fully sparse training with transposable masks.

A mask that is N:M along rows and columns serves both products with the weight; it is chosen from
the dense weight every `every` steps. Pruned weights decay through the gradient, so that Adam
normalises the decay like the gradient:

    grad += gradient_decay (1 - M) * W     after clipping, before the optimizer

The weight gradient comes from an unbiased 2:4 sample of dY, and the last part of the training is
dense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from gossamer.errors import PatternError, RecipeError
from gossamer.masks import add_pruned_, mask_difference
from gossamer.masks.transposable import TileMethod, transposable_mask
from gossamer.nn.layers.base import MaskedLayer, plain_groups
from gossamer.nn.layers.linear import dense_weight
from gossamer.nn.layers.sampled import SampledLinear
from gossamer.patterns import NM, Pattern
from gossamer.recipes.base.checks import (
    check_count,
    check_number,
    check_seed,
    check_share,
    parse_sample,
)
from gossamer.recipes.base.recipe import Recipe

_METHODS = ("auto", "exact", "entropy")


@dataclass(eq=False)
class FST(Recipe):
    """Transposable N:M masks with masked decay, sampled weight gradients and a dense end.

    Args:
        pattern: N:M without shared rows; both sizes of a layer must be multiples of m.
        distribution: "uniform", because N:M patterns have a fixed density.
        gradient_decay: alpha of the masked decay, added to the gradient; published: 6e-5 (GPT-2
            124M, 774M), 2e-4 (350M, 1558M).
        every: steps between two choices of the mask.
        dense_finetune_share: share of the steps, at the end, with the whole weight, in [0, 1). The
            trained model is then dense; with 0 it stays sparse.
        mvue: n:m of the sample of dY along the tokens; None takes the whole dY.
        seed: seed of the samples, in [0, 2**64).
        method: how tiles are chosen: "exact" (m = 4), "entropy" or "auto".

    Raises:
        PatternError: the pattern or the sample is not plain N:M.
        RecipeError: a number out of range, or an unknown method.

    Reference:
        Hu et al. 2024, "Accelerating Transformer Pre-training with 2:4 Sparsity",
        arXiv 2404.01847; masked decay: equation 9; masks of Hubara et al. 2021.

    Example:
        >>> import torch
        >>> recipe = FST("2:4", every=20)
        >>> model = recipe.prepare(torch.nn.Sequential(torch.nn.Linear(8, 4)))
        >>> model[0].density
        0.5
    """

    gradient_decay: float = 6e-5
    every: int = 40
    dense_finetune_share: float = 1 / 6
    mvue: str | NM | None = "2:4"
    seed: int = 0
    method: TileMethod = "auto"

    renamed: ClassVar[dict[str, str]] = {
        "decay": "gradient_decay",
        "refresh_every": "every",
        "dense_finetune": "dense_finetune_share",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        plain_groups(self.pattern, "FST")
        self.mvue: NM | None = parse_sample(self.mvue, "FST")
        if self.method not in _METHODS:
            raise RecipeError(
                f"FST got method={self.method!r}; the mask must keep exactly n in each row: "
                f"choose {', '.join(_METHODS)}"
            )
        check_number(self.gradient_decay, "FST got gradient_decay")
        check_count(self.every, "FST got every")
        check_share(self.dense_finetune_share, "FST got dense_finetune_share", below_one=True)
        check_seed(self.seed, "FST got seed")

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer with a fixed transposable mask."""
        kept = plain_groups(pattern, "FST")
        rows = dense_weight(linear).shape[0]
        if rows % kept.m:
            raise PatternError(
                f"FST got out_features={rows} with pattern {pattern}; a "
                f"transposable mask needs multiples of {kept.m} in both sizes: choose another m, "
                "or exclude the layer (exclude=...)"
            )
        layer = SampledLinear.from_dense(linear, kept, False, self.mvue, self.seed, index)
        layer.set_mask(self._choose(layer.weight, kept))
        return layer

    def finished(self, layer: MaskedLayer) -> nn.Module:
        """Return the `SparseLinear` of a layer; one that ends dense keeps its whole weight."""
        return layer.to_sparse(layer.pattern)

    def start(self) -> None:
        """Start with flip rates of 0."""
        self.state["flip_rates"] = torch.zeros(len(self.layers), dtype=torch.float64)

    @property
    def dense_from(self) -> int:
        """The first step that uses the whole weight; `total_steps` if there is none."""
        # Slightly more, so that a sixth of 6 steps is one.
        return self.total_steps - int(self.total_steps * self.dense_finetune_share + 1e-9)

    @property
    def flip_rates(self) -> dict[str, float]:
        """Share of entries whose mask changed at the last choice, in [0, 1], by layer."""
        rates = self.state.get("flip_rates")
        return {} if rates is None else dict(zip(self.layers, rates.tolist(), strict=True))

    def before_step(self, t: int) -> None:
        """Add the masked decay to the gradients; without a mask there is none."""
        for _, _, layer in self.of_type(SampledLinear):
            if not self.gradient_decay or layer.is_dense_now:
                continue
            if layer.weight.grad is not None:
                add_pruned_(layer.weight.grad, layer.weight, self.gradient_decay, layer.structure)

    def after_step(self, t: int) -> None:
        """Choose the masks, or drop them when the dense end begins."""
        done = t + 1
        if done >= self.dense_from and self.dense_from < self.total_steps:
            if done == self.dense_from:
                self._drop_masks()
        elif done % self.every == 0:
            self._refresh()

    def _drop_masks(self) -> None:
        for _, _, layer in self.of_type(SampledLinear):
            layer.set_dense()

    def _refresh(self) -> None:
        for index, _, layer in self.of_type(SampledLinear):
            before = layer.structure
            layer.set_mask(self._choose(layer.weight, plain_groups(layer.pattern, "FST")))
            flips = mask_difference(before, layer.structure)
            self.state["flip_rates"][index] = flips / max(layer.weight.numel(), 1)

    def _choose(self, weight: torch.Tensor, pattern: NM) -> torch.Tensor:
        return transposable_mask(weight.detach(), pattern.n, pattern.m, method=self.method)


__all__ = ["FST"]
