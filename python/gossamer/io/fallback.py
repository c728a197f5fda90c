"""Layers whose pattern is not registered here: named in an error, or made dense with a warning.

The layout of a mask is known without its pattern, so the weight can be written down densely.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from gossamer.backend import Layout
from gossamer.errors import CheckpointError, PatternError
from gossamer.nn.layers.base import MaskedLayer
from gossamer.nn.layers.rebuilding import build
from gossamer.patterns import NM, Pattern, Unstructured, plain_fields, unknown_kind
from gossamer.weight.descriptor import describe

Fallback = Literal["raise", "warn"]
"""What to do with a layer of an unknown pattern."""


def unknown_pattern(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of the pattern of a layer's state that is not registered here, or None."""
    for name, tensor in state.items():
        if name.rpartition(".")[2] == "descriptor" and tensor.dim() == 1 and len(tensor) >= 8:
            found = unknown_kind(tensor.tolist())
            if found is not None:
                return found
    return None


def densely(described: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """Build the dense layer of a sparse layer whose pattern is unknown.

    Args:
        described: its description.
        state: its state dict.

    Raises:
        CheckpointError: the layer consists of several; or is damaged.
    """
    standing: dict[str, Tensor] = dict(state)
    pattern: Pattern | None = None
    for name, tensor in state.items():
        if name.rpartition(".")[2] == "descriptor":
            above = name.removesuffix("descriptor")
            pattern, standing[name] = _stand_in(tensor.tolist(), len(state[above + "indices"]))
    assert pattern is not None  # noqa: S101 - unknown_pattern has found one
    options = dict(described)
    if isinstance(options.get("target"), Mapping):
        options["target"] = plain_fields(pattern)
        options["reselect_each_forward"] = False  # by a rule that is not known
    layer = build(options, standing)
    if not isinstance(layer, MaskedLayer):
        raise CheckpointError(
            f"a layer of kind {described.get('kind')!r:.80} has a pattern that is not registered "
            "here, and is none that can be made dense: import the module of the pattern"
        )
    return layer.to_dense()


def warn(names: Mapping[str, str]) -> None:
    """Warn of layers that were made dense, the pattern's name by the layer's."""
    if names:
        layers = ", ".join(f"{name or 'the model'} ({pattern})" for name, pattern in names.items())
        warnings.warn(
            f"load made layers dense, whose patterns are not registered here: {layers}; to keep "
            "them sparse, import the modules that register their patterns before the load",
            UserWarning,
            stacklevel=3,
        )


def _stand_in(numbers: list[int], lists: int) -> tuple[Pattern, Tensor]:
    """Return a pattern with the layout of an unknown one, and its descriptor."""
    kind, rows, cols, panel, block_cols, n, m = numbers[:7]
    if not 0 < rows * cols < 2**48 or panel not in (1, 4, 8):
        raise PatternError(f"the descriptor holds a weight [{rows}, {cols}] by {panel}: damaged")
    pattern = NM(n, m, panel) if n else Unstructured.keeping(lists * panel, rows * cols, panel)
    layout = Layout(rows, cols, panel, block_cols, n, m)
    return pattern, describe(pattern, layout, kind >> 8)


__all__ = ["Fallback", "densely", "unknown_pattern", "warn"]
