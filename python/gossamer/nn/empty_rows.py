"""Warns of layers of few outputs in which outputs read nothing: they stay at their bias for ever.

In a wide layer an empty row is one neuron of many. In a head, a value function or a gate it is an
output of the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import nn

from gossamer.nn.layers.base import MaskedLayer
from gossamer.patterns import Pattern

FEW_OUTPUTS = 16


def warn_of_empty_rows(
    model: nn.Module, who: str, among: Iterable[nn.Module] | None = None
) -> None:
    """Warn once, naming each layer of few outputs that has rows without a kept entry.

    Args:
        model: any module.
        who: the beginning of the warning.
        among: the layers to look at; None looks at all.
    """
    wanted = None if among is None else set(among)
    notes = []
    for name, module in model.named_modules():
        if isinstance(module, MaskedLayer) and (wanted is None or module in wanted):
            empty = empty_rows(module)
            if empty:
                size = f"{module.out_features}x{module.in_features}, {module.target}"
                notes.append(f"layer {name!r} ({size}): {empty} of {module.out_features}")
    if notes:
        warnings.warn(
            f"{who}: outputs that read nothing stay at their bias: " + "; ".join(notes) + ". Keep "
            "such a layer dense (exclude=...) or give it a lower sparsity",
            UserWarning,
            stacklevel=3,
        )


def empty_rows(layer: MaskedLayer) -> int:
    """Return the rows without a kept entry, now or at least at the end of a recipe.

    It is 0 for layers of more than `FEW_OUTPUTS` outputs.
    """
    rows = layer.out_features
    if rows > FEW_OUTPUTS or not layer.in_features or layer.entries.is_meta:
        return 0
    at_the_end = rows - _reached(layer.target, rows, layer.in_features)
    now = 0 if layer.is_dense_now else rows - int(layer.mask().any(dim=1).sum())
    return max(now, at_the_end)


def _reached(pattern: Pattern, rows: int, cols: int) -> int:
    """Return the largest number of rows that the entries of a pattern can reach."""
    return min(pattern.count(rows, cols) // pattern.tile[1], rows)
