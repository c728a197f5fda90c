"""Layers by number: how an operator in a compiled graph finds the layer that called it.

The number is a tensor, because a graph would be compiled anew for each value of an int: twenty
equal blocks that are compiled one by one share one graph. It means nothing in another process.
"""

from __future__ import annotations

from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from gossamer.errors import GossamerError
from gossamer.weight.naming import describe

_LAYERS: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()
_NUMBERS = count()


def number(layer: nn.Module) -> Tensor:
    """Return a new number, int64 [], by which `layer_of` finds a layer while it lives."""
    found = next(_NUMBERS)
    _LAYERS[found] = layer
    return torch.tensor(found, dtype=torch.int64, device="cpu")


def layer_of(number: Tensor) -> Any:
    """Return the layer of a number, None if it lives no longer."""
    return _LAYERS.get(int(number))


def refuse_export(layer: nn.Module, hides: str, instead: str) -> None:
    """Raise GossamerError under torch.export, whose graphs leave the process.

    Args:
        layer: that is called.
        hides: what export cannot see.
        instead: what to do.
    """
    if torch.compiler.is_exporting():
        # What looks for the name on the call stack cannot be traced itself.
        who = type(layer).__name__ if torch.compiler.is_dynamo_compiling() else describe(layer)
        raise GossamerError(
            f"{who} was called under torch.export, which cannot see {hides}: {instead}"
        )


__all__ = ["layer_of", "number", "refuse_export"]
