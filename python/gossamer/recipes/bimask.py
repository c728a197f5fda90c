"""Bi-Mask: one N:M mask for the forward product, another for the backward one.

    forward:   Y = X (M_f * W)^T,         M_f the n largest of every m columns of a row
    backward:  dX = dY (M_b * M_f * W),   M_b the n largest of every m rows of a column

The groups of M_b are of rows in another order, a permutation chosen so that as few entries as
possible are lost: of `candidates` random ones the best every `choose_every` steps. The weight
gradient is dense (straight through) and what M_f prunes decays as in SR-STE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.backend import Structure
from gossamer.errors import RecipeError
from gossamer.masks import add_pruned_, double_prune, select_nm
from gossamer.nn import MaskedLinear
from gossamer.ops import autograd
from gossamer.patterns import NM, Pattern, as_integer
from gossamer.recipes.recipe import Recipe
from gossamer.recipes.sampled import plain_groups


class BiMaskLinear(MaskedLinear):
    """A `MaskedLinear` whose input gradient uses a weight pruned down its columns as well.

    Attributes:
        order: int64 [out_features], the permutation of rows in which the backward mask is chosen;
            a buffer, at first the rows as they are.
    """

    order: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("order", torch.arange(self.out_features))

    def input_gradient(self, g: Tensor, values: Tensor, structure: Structure) -> Tensor:
        """DX [..., in_features] of dY [..., out_features]."""
        pattern = plain_groups(self.pattern, "BiMask")
        permuted = backend.scatter(values, structure)[self.order]
        kept, turned = select_nm(permuted, pattern)
        transposed = double_prune(kept, turned, pattern.n, pattern.m)
        return autograd.run_spmm_t(g[..., self.order], kept, turned, transposed)

    def backward_mask(self) -> Tensor:
        """What the backward product uses of the forward mask, bool [out_features, in_features]."""
        pattern = plain_groups(self.pattern, "BiMask")
        kept, turned = select_nm(self.used_weight()[self.order], pattern)
        transposed, _ = double_prune(kept, turned, pattern.n, pattern.m)
        mask = torch.zeros(self.weight.numel(), dtype=torch.bool)
        mask[backend.coordinates(transposed)] = True
        permuted = mask.view(self.in_features, self.out_features).t()
        out = torch.empty_like(permuted)
        out[self.order] = permuted
        return out

    def choose_order(self, candidates: int, generator: torch.Generator) -> float:
        """Take the best of some random permutations, or stay with the present one.

        Returns:
            The share of the forward mask that the backward mask keeps, in [0, 1].
        """
        with torch.no_grad():
            _, structure = self.pack()
        pattern = plain_groups(self.pattern, "BiMask")
        mask = self.mask()
        best, order = overlap(mask, self.order, pattern), self.order
        for _ in range(candidates):
            other = torch.randperm(self.out_features, generator=generator)
            if (found := overlap(mask, other, pattern)) > best:
                best, order = found, other
        self.order = order
        return best / max(structure.nnz, 1)


def overlap(mask: Tensor, order: Tensor, pattern: NM) -> int:
    """How many entries stay when groups of m rows, in an order, keep n in each column."""
    rows = mask.view(torch.uint8)[order]
    rows = nn.functional.pad(rows, (0, 0, 0, -rows.shape[0] % pattern.m))
    counts = rows.view(-1, pattern.m, mask.shape[1]).sum(1, dtype=torch.uint8)
    return int(counts.clamp_(max=pattern.n).sum())


@dataclass(eq=False)
class BiMask(Recipe):
    """N:M forward, column N:M backward under a chosen permutation of rows, over a dense master.

    Args:
        pattern: N:M without shared rows.
        decay: lambda of SR-STE: decay (1 - M_f) W is added to the gradient.
        choose_every: steps between two choices of the permutation.
        candidates: random permutations that each choice tries.
        seed: of the permutations.

    Raises:
        PatternError: the pattern is not plain N:M.
        RecipeError: a number is out of range.

    Reference:
        Zhang et al. 2023, "Bi-directional Masks for Efficient N:M Sparse Training",
        arXiv 2302.06058; the permutation in use is a candidate too, so that a choice never loses.

    Example:
        >>> import torch
        >>> layer = BiMask("1:4").prepare(torch.nn.Linear(8, 4))
        >>> layer.mask().sum(1).tolist()
        [2, 2, 2, 2]
    """

    decay: float = 2e-4
    choose_every: int = 100
    candidates: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        plain_groups(self.pattern, "BiMask")
        for name in ("choose_every", "candidates", "seed"):
            setattr(self, name, as_integer(getattr(self, name), f"BiMask got {name}"))
        for name, good, needed in (
            ("decay", 0 <= self.decay < math.inf, "a number that is not negative"),
            ("choose_every", self.choose_every >= 1, "at least 1"),
            ("candidates", self.candidates >= 0, "at least 0"),
        ):
            if not good:
                raise RecipeError(f"BiMask got {name}={getattr(self, name)}; it must be {needed}")

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer with a mask for each direction."""
        return BiMaskLinear.from_dense(linear, plain_groups(pattern, "BiMask"))

    def start(self) -> None:
        """The first choice of permutations."""
        self._choose(0)

    @property
    def overlaps(self) -> dict[str, float]:
        """By layer, the share of the forward mask that the last choice kept backward."""
        shares = self.state.get("overlaps")
        return {} if shares is None else dict(zip(self.layers, shares.tolist(), strict=True))

    def before_step(self, t: int) -> None:
        """Add the decay of what the forward mask prunes to the gradients."""
        for _, _, layer in self.of_type(BiMaskLinear):
            if self.decay and layer.weight.grad is not None:
                add_pruned_(layer.weight.grad, layer.weight, self.decay, layer.structure)

    def after_step(self, t: int) -> None:
        """Choose permutations anew."""
        if (t + 1) % self.choose_every == 0:
            self._choose(t + 1)

    def _choose(self, t: int) -> None:
        shares = torch.zeros(len(self.layers), dtype=torch.float64)
        for index, _, layer in self.of_type(BiMaskLinear):
            shares[index] = layer.choose_order(self.candidates, self.generator(t, index, self.seed))
        self.state["overlaps"] = shares


__all__ = ["BiMask", "BiMaskLinear"]
