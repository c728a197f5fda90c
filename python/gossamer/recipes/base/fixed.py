"""Fixed masks over dense weights, for recipes that change the density of their layers.

The layers are `MaskedLinear` with a fixed mask and the gradient of the kept entries. Whatever the
mask drops is exactly 0: the weight, its gradient and the optimizer's state, so that no momentum
and no optimizer step brings it back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.masks import magnitude_mask
from gossamer.masks.selection import is_own
from gossamer.nn import MaskedLinear
from gossamer.patterns import Pattern
from gossamer.weight.moving import forget_joint_state
from gossamer.weight.quantized_state import BlockState, quantized_state

__all__ = ["apply_mask", "fixed_mask", "prune_to", "with_sparsity", "zero_outside"]


def fixed_mask(linear: nn.Module, pattern: Pattern, target: Pattern) -> MaskedLinear:
    """Build a layer with a fixed mask of `pattern`; `target` is the final pattern."""
    return MaskedLinear.from_dense(
        linear, pattern, reselect_each_forward=False, gradient="kept", target=target
    )


def with_sparsity(target: Pattern, sparsity: float) -> Pattern:
    """Return a pattern of the same class as `target` with another sparsity.

    Args:
        target: the final pattern.
        sparsity: clamped to [0, sparsity of the target]. An N:M pattern takes the least n whose
            sparsity is at most this.

    Example:
        >>> from gossamer.patterns import NM
        >>> with_sparsity(NM(1, 4), 0.3)
        NM(n=3, m=4, vector=1)
    """
    sparsity = min(max(sparsity, 0.0), target.sparsity)
    return target.at_sparsity(sparsity)


def prune_to(
    layer: MaskedLinear, pattern: Pattern, optimizer: torch.optim.Optimizer | None
) -> None:
    """Keep the largest entries of a layer; with a pattern that keeps all, the layer is dense.

    Args:
        layer: a layer with a fixed mask.
        pattern: its target, or that with a smaller sparsity.
        optimizer: the optimizer that holds the weight, or None.
    """
    # The share of a pattern from outside may depend on the shape; it keeps its mask.
    if is_own(pattern) and pattern.density == 1.0:
        layer.set_dense()
    else:
        apply_mask(layer, magnitude_mask(layer.weight, pattern), pattern, optimizer)


def apply_mask(
    layer: MaskedLinear,
    mask: Tensor,
    pattern: Pattern | None,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Set a layer's mask, and zero what it drops.

    Args:
        layer: a layer with a fixed mask.
        mask: bool [rows, cols], True = kept.
        pattern: pattern of the mask; None is the layer's own.
        optimizer: the optimizer that holds the weight, or None.
    """
    quantized_of(layer.weight, optimizer)  # refuses before anything changes
    layer.set_mask(mask, pattern)
    zero_outside(layer.weight, mask, optimizer)


def zero_outside(
    weight: nn.Parameter, mask: Tensor, optimizer: torch.optim.Optimizer | None
) -> None:
    """Zero what a mask drops: in a weight, its gradient and the optimizer's state.

    With momentum left over, an optimizer would move the dropped entries away from zero again.

    Args:
        weight: [rows, cols].
        mask: bool [rows, cols], True = kept.
        optimizer: the optimizer that holds the weight, or None.
    """
    forget_joint_state(optimizer)
    state = optimizer.state.get(weight, {}) if optimizer is not None else {}
    quantized = quantized_of(weight, optimizer)
    for block in quantized.values():
        block.write(block.read().masked_fill_(~mask, 0.0))
    plain = (value for name, value in state.items() if name not in quantized)
    for tensor in (weight.detach(), weight.grad, *plain):
        if isinstance(tensor, Tensor) and tensor.shape == mask.shape:
            # Not a product: NaN times 0 is NaN.
            tensor.masked_fill_(~mask, 0.0)


def quantized_of(
    weight: nn.Parameter, optimizer: torch.optim.Optimizer | None
) -> dict[str, BlockState]:
    """Return what an optimizer keeps of a weight in 8 bits; see `quantized_state`."""
    return {} if optimizer is None else quantized_state(optimizer.state.get(weight, {}), weight)
