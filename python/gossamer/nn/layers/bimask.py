"""BiMaskLinear: one N:M mask for the forward product, another for the backward product.

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
from gossamer.nn.layers.products import refuse_groups
from gossamer.patterns import NM


class BiMaskLinear(MaskedLinear):
    """A `MaskedLinear` whose input gradient uses a weight that is also pruned down its columns.

    Attributes:
        order: int64 [out_features], a buffer: the order of rows in which the backward mask is
            selected; initially the identity.
    """

    order: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refuse_groups(self.product, "BiMask")
        self.register_buffer("order", torch.arange(self.out_features))

    def input_gradient(
        self, grad_output: Tensor, values: Tensor, structure: Structure, size: torch.Size
    ) -> Tensor:
        """Return dX of a size for grad_output dY."""
        pattern = plain_groups(self.pattern, "BiMask")
        permuted = backend.scatter(values, structure)[self.order]
        kept, chosen = select_nm(permuted, pattern)
        transposed = double_prune(kept, chosen, pattern.n, pattern.m)
        ordered = self.product.rows_in_order(grad_output, self.order)
        return self.product.input_gradient(ordered, kept, chosen, transposed, size)

    def backward_mask(self) -> Tensor:
        """Return the mask M_b * M_f of the backward product, bool [out_features, in_features]."""
        pattern = plain_groups(self.pattern, "BiMask")
        kept, chosen = select_nm(self.used_weight()[self.order], pattern)
        transposed, _ = double_prune(kept, chosen, pattern.n, pattern.m)
        permuted = backend.mask(transposed).t()
        out = torch.empty_like(permuted)
        out[self.order] = permuted
        return out

    def choose_order(self, candidates: int, generator: torch.Generator) -> float:
        """Choose the best of the present order and some random permutations.

        Args:
            candidates: number of random permutations.
            generator: generator that draws them.

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
    """Return the number of kept entries when groups of m rows, in an order, keep n per column."""
    rows = mask.view(torch.uint8)[order]
    rows = nn.functional.pad(rows, (0, 0, 0, -rows.shape[0] % pattern.m))
    counts = rows.view(-1, pattern.m, mask.shape[1]).sum(1, dtype=torch.uint8)
    return int(counts.clamp_(max=pattern.n).sum())


__all__ = ["BiMaskLinear", "overlap"]
