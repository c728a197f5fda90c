"""Masks held over a dense weight: what recipes share whose layers change their density.

The layers are `MaskedLinear` with a held mask and the gradient of the kept entries. Whatever is
masked is exactly 0: the weight, its gradient and the optimizer's state, so that no momentum moves
it and no optimizer step brings it back.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from gossamer.nn import MaskedLinear
from gossamer.patterns import Block, GroupedNM, Pattern, Unstructured
from gossamer.recipes.static import check_kind

_TARGET = "_gossamer_target"


def check_thins(pattern: str | Pattern, who: str) -> None:
    """Raise PatternError when a pattern has no thinner and denser ones of its kind."""
    check_kind(
        pattern,
        GroupedNM,
        f"{who} would upset the balance of its choices when it prunes",
        "a pattern such as '2:4' or '50%'",
    )


def held_layer(linear: nn.Module, pattern: Pattern, target: Pattern) -> MaskedLinear:
    """The layer of a dense one, whose mask is of one pattern now and of another in the end."""
    layer = MaskedLinear.from_dense(linear, pattern, moving=False, gradient="kept")
    object.__setattr__(layer, _TARGET, target)
    return layer


def target_of(layer: MaskedLinear) -> Pattern:
    """The pattern that a layer has in the end."""
    target: Pattern = layer.__dict__[_TARGET]
    return target


def thinner(target: Pattern, sparsity: float) -> Pattern:
    """The pattern of a kind with another sparsity, which is at most the target's.

    Of N:M, the least n that keeps at least so much.
    """
    sparsity = min(max(sparsity, 0.0), target.sparsity)
    if isinstance(target, Unstructured | Block):
        return replace(target, sparsity=sparsity)
    # Off by rounding alone, 2.0000000001 of 4 are 2.
    kept = math.ceil(round(target.m * (1.0 - sparsity), 9))
    return replace(target, n=max(kept, target.n))


def hold(
    layer: MaskedLinear, mask: Tensor, pattern: Pattern, optimizer: torch.optim.Optimizer | None
) -> None:
    """Hold a mask, and make weight, gradient and optimizer state 0 outside it.

    Args:
        layer: whose mask moves.
        mask: bool [rows, cols], True = kept.
        pattern: of the mask.
        optimizer: that holds the weight.
    """
    layer.set_mask(mask, pattern)
    weight = layer.weight
    state = optimizer.state.get(weight, {}) if optimizer is not None else {}
    for tensor in (weight.detach(), weight.grad, *state.values()):
        if isinstance(tensor, Tensor) and tensor.dim() and tensor.shape == mask.shape:
            # Not a product: NaN times 0 is NaN.
            tensor.masked_fill_(~mask, 0.0)
