"""BiMaskLinear: one N:M mask for the forward product, another for the backward one.

forward:   Y = X (M_f * W)^T,         M_f the n largest of every m columns of a row
backward:  dX = dY (M_b * M_f * W),   M_b the n largest of every m rows of a column
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.backend import Structure
from gossamer.masks import double_prune, select_nm
from gossamer.nn.layers.base import plain_groups
from gossamer.nn.layers.masked import MaskedLinear
from gossamer.ops import autograd
from gossamer.patterns import NM


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

    def input_gradient(self, grad_output: Tensor, values: Tensor, structure: Structure) -> Tensor:
        """Return dX [..., in_features] for grad_output dY [..., out_features]."""
        pattern = plain_groups(self.pattern, "BiMask")
        permuted = backend.scatter(values, structure)[self.order]
        kept, chosen = select_nm(permuted, pattern)
        transposed = double_prune(kept, chosen, pattern.n, pattern.m)
        return autograd.run_spmm_t(grad_output[..., self.order], kept, chosen, transposed)

    def backward_mask(self) -> Tensor:
        """What the backward product uses of the forward mask, bool [out_features, in_features]."""
        pattern = plain_groups(self.pattern, "BiMask")
        kept, chosen = select_nm(self.used_weight()[self.order], pattern)
        transposed, _ = double_prune(kept, chosen, pattern.n, pattern.m)
        permuted = backend.mask(transposed).t()
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


__all__ = ["BiMaskLinear", "overlap"]
