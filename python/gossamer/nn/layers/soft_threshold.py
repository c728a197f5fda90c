"""SoftThresholdLinear: a layer that multiplies by soft-thresholded N:M weights.

    S(w)_i = sign(w_i) max(|w_i| - t, 0),  t = largest pruned magnitude of the group
    forward: beta S(W)       gradient of W: that of beta S(W), unchanged

When two entries swap in the mask, both are zero: the used weight is a continuous function of the
trained weight. beta = <W, S(W)> / |S(W)|^2 restores the scale; it is computed once, when the layer
is made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.backend import Structure
from gossamer.masks import add_pruned_, select_nm
from gossamer.nn.layers.base import plain_groups
from gossamer.nn.layers.sampled import SampledLinear


# --8<-- [start:layer]
class SoftThresholdLinear(SampledLinear):
    """A `SampledLinear` that multiplies by beta S(W).

    Attributes:
        beta: the frozen scale; a 0-d float64 buffer.
    """

    beta: Tensor

    def __init__(self, weight: nn.Parameter, *args: Any, **kwargs: Any) -> None:
        super().__init__(weight, *args, **kwargs)
        self.register_buffer("beta", torch.ones((), dtype=torch.float64))
        with torch.no_grad():
            values, structure = self.pack()
            kept, soft = backend.gather(weight, structure).double(), values.double()
            square = soft.square().sum()
            if square > 0:
                self.beta.copy_((kept * soft).sum() / square)

    def pack(self) -> tuple[Tensor, Structure]:
        """Return the values beta S(W) [nnz] and their structure."""
        pattern = plain_groups(self._pattern, "SSTE")
        weight = self.weight.detach()
        _, structure = select_nm(weight, pattern)
        self._fix_mask(structure, pattern)
        size = weight.abs()
        # The pruned entries; the largest magnitude per group is its threshold.
        pruned = add_pruned_(torch.zeros_like(size), size, 1.0, structure)
        groups = (size.shape[0], size.shape[1] // pattern.m, pattern.m)
        threshold = pruned.view(groups).amax(2, keepdim=True)
        soft = (size.view(groups) - threshold).clamp_(min=0).view(size.shape)
        soft.mul_(self.beta.to(soft.dtype)).copysign_(weight)
        return backend.gather(soft, structure), structure

    # --8<-- [end:layer]


__all__ = ["SoftThresholdLinear"]
