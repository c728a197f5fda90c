"""Which layers have a sparse counterpart, and the one in the place of a dense layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gossamer.nn.layers.convolution import kind_of
from gossamer.nn.layers.filters import check_filters
from gossamer.nn.layers.linear import SparseLinear, dense_weight, is_pruned, trained_weight
from gossamer.nn.layers.permuted import PermutedLinear
from gossamer.nn.layers.sparse import SparseLayer
from gossamer.patterns import Pattern
from gossamer.weight import SparseWeight


def is_convolution(module: nn.Module) -> bool:
    """Return whether a layer is exactly torch's Conv1d, Conv2d or Conv3d, not a subclass."""
    return kind_of(module) is not None and ("weight" in module._parameters or is_pruned(module))


def is_depthwise(module: nn.Module) -> bool:
    """Return whether each filter of a convolution reads one channel of several."""
    weight: Any = trained_weight(module) if is_convolution(module) else None
    return weight is not None and weight.shape[1] == 1 and getattr(module, "groups", 1) > 1


def check_pattern(module: nn.Module, pattern: Pattern, who: str) -> None:
    """Raise PatternError unless the weight of a linear layer or a convolution fits a pattern."""
    if is_convolution(module):
        shape = trained_weight(module).shape
        check_filters(pattern, shape[0], shape[1], shape[2:], module.groups, who)  # type: ignore[arg-type]
    else:
        rows, cols = dense_weight(module).shape
        pattern.check_shape(rows, cols, who)


def sparse_like(
    module: nn.Module,
    weight: SparseWeight,
    bias: nn.Parameter | None,
    row_order: Tensor | None = None,
) -> SparseLayer:
    """Make the sparse counterpart of a layer, which holds an existing weight and bias.

    The weight of a linear layer has its rows in the order `row_order`, if that is given.
    """
    kind = kind_of(module)
    if kind is None and row_order is not None:
        return PermutedLinear.of_parts(weight, bias, row_order)
    if kind is None:
        return SparseLinear.of_parts(weight, bias)
    return kind.like(module, weight, bias)


def sparse_from_dense(
    module: nn.Module, pattern: str | Pattern, mask: Tensor | None = None
) -> SparseLayer:
    """Make the sparse counterpart of a layer with copies of its kept entries and its bias.

    Args:
        module: a linear layer or a convolution.
        pattern: a pattern or its text.
        mask: bool [out_features, in_features], True = kept; None keeps the largest magnitudes.

    Example:
        >>> sparse_from_dense(nn.Conv2d(4, 8, 3), "50%").weight.shape
        torch.Size([8, 36])
    """
    kind = kind_of(module)
    if kind is None:
        return SparseLinear.from_dense(module, pattern, mask)
    return kind.from_dense(module, pattern, mask)


__all__ = [
    "check_pattern",
    "is_convolution",
    "is_depthwise",
    "sparse_from_dense",
    "sparse_like",
]
