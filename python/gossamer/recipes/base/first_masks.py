"""First masks from outside a recipe, before its training starts."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from gossamer import backend
from gossamer.nn import MaskedLayer, MaskedLinear

__all__ = ["start_at"]


def start_at(layer: MaskedLayer, dense: Tensor, mask: Tensor) -> None:
    """Set the first mask of a layer, with the dense weight's values at what it keeps.

    Args:
        layer: that a recipe has just made, which stores kept entries only or has a fixed mask.
        dense: [out_features, in_features], the weight that it was made from.
        mask: bool, of the same shape and the layer's pattern.
    """
    weight = layer.sparse_weight
    if weight is None:
        cast(MaskedLinear, layer).set_mask(mask)  # a recipe that takes scores has no other
        return
    weight.set_mask(mask)
    with torch.no_grad():
        weight.values.copy_(backend.gather(dense.to(weight.values.dtype), weight.structure))
    weight.refresh_transpose()
