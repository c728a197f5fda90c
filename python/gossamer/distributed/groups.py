"""Process groups: which processes train a model together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from gossamer.errors import CheckpointError
from gossamer.weight.sharding import groups_of

__all__ = ["by_first_process", "groups_over", "is_first_process"]


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


def is_first_process() -> bool:
    """Return whether this is the process that writes for all."""
    from torch import distributed as dist

    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def by_first_process(write: Callable[[], object]) -> None:
    """Have the first process write something; all processes return or raise together.

    Args:
        write: writes, and raises CheckpointError if it cannot.

    Raises:
        CheckpointError: on every process.
    """
    from torch import distributed as dist

    failed: list[str | None] = [None]
    if is_first_process():
        try:
            write()
        except CheckpointError as error:
            failed = [str(error)]
    dist.broadcast_object_list(failed, src=0)
    if failed[0] is not None:
        raise CheckpointError(failed[0])
