"""Filters of a convolution as a matrix, and which patterns fit them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gossamer.errors import DTypeError, PatternError, ShapeError
from gossamer.patterns import Pattern

SHAPE = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
"""The attributes of a convolution, dense or sparse, that say how its taps lie."""


def options_of(convolution: object) -> dict[str, Any]:
    """Return the window of a convolution, dense or sparse, as JSON values.

    Raises:
        DTypeError: the layer is no convolution.
    """
    if any(not hasattr(convolution, name) for name in SHAPE):
        raise DTypeError(f"got {type(convolution).__name__}, which is no convolution; give one")
    found = {name: getattr(convolution, name) for name in SHAPE}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}


def matrix_of(filters: Tensor) -> Tensor:
    """Return filters [out, channels, *kernel] as the matrix [out, taps * channels].

    Raises:
        ShapeError: the filters have no shape yet.
    """
    if is_lazy(filters):
        raise ShapeError("the filters have no shape yet; run the model once, which gives them one")
    return filters.movedim(1, -1).reshape(filters.shape[0], -1)


def filters_of(matrix: Tensor, kernel_size: tuple[int, ...]) -> Tensor:
    """Return a matrix [out, taps * channels] as filters [out, channels, *kernel]."""
    return matrix.view(matrix.shape[0], *kernel_size, -1).movedim(-1, 1)


def as_matrix(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return a tensor as a matrix if it has the shape of the filters, else as it is."""
    return matrix_of(tensor) if tensor.shape == shape else tensor


def check_filters(
    pattern: Pattern, rows: int, channels: int, kernel: tuple[int, ...], groups: int, who: str
) -> None:
    """Raise PatternError unless filters [rows, channels, *kernel] fit a pattern.

    Groups of N:M run along the channels of a tap, and rows that share their columns lie in one
    group of channels.
    """
    if (m := pattern.group[1]) and channels % m:
        raise PatternError(
            f"{who} got {channels} input channels per group with pattern {pattern}; groups of N:M "
            f"run along them, so they must be a multiple of {m}: choose another n:m, an "
            f"unstructured pattern such as {100 * pattern.sparsity:.3g}%, or exclude the layer "
            "(exclude=...)"
        )
    together = max(pattern.tile[0], pattern.panel)
    if groups > 1 and rows // groups % together:
        raise PatternError(
            f"{who} got {rows // groups} output channels per group with pattern {pattern}; rows "
            f"that share their columns lie in one group, so they must be a multiple of "
            f"{together}: choose a pattern without a vector, or exclude "
            "the layer (exclude=...)"
        )
    pattern.check_shape(rows, channels * math.prod(kernel), who)


__all__ = ["SHAPE", "as_matrix", "check_filters", "filters_of", "matrix_of", "options_of"]
