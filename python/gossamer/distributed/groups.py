"""Process groups: which processes train a model together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from gossamer.weight.sharding import groups_of

__all__ = ["groups_over"]


def groups_over(model: nn.Module, layers: Iterable[nn.Module]) -> list[Any]:
    """Return the process groups over which gradients of these layers are averaged, one after one.

    Args:
        model: the model, or the DistributedDataParallel around it.
        layers: layers inside; their parameters are DTensors under `fully_shard`, whose mesh has
            the groups.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return [model.process_group]
    for layer in layers:
        for parameter in layer.parameters():
            if groups := groups_of(parameter):
                return groups
    return []
