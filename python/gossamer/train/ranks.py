"""Data parallelism of a training: the processes that torchrun has started, connected by gloo.

Each process takes an equal share of a batch; DistributedDataParallel averages the gradients. The
first process alone reads and writes files and speaks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gossamer.errors import ArgumentError, GossamerError

Value = TypeVar("Value")

__all__ = [
    "any_rank",
    "averaged",
    "check_batch",
    "connected",
    "from_first",
    "is_first",
    "mean",
    "share",
    "size",
]


@contextmanager
def connected() -> Iterator[None]:
    """Connect the processes that torchrun has started; alone, or where they are, do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Return whether this process reads and writes files, and speaks."""
    return size() == 1 or dist.get_rank() == 0


def check_batch(batch: int) -> None:
    """Refuse a batch that cannot be shared equally.

    Raises:
        ArgumentError: the number of windows is not a multiple of the number of processes.
    """
    if batch % size():
        fitting = max(batch // size(), 1) * size()
        raise ArgumentError(
            f"train got batch={batch} for {size()} processes; each takes an equal share: choose "
            f"--batch {fitting}"
        )


def share(batch: Tensor) -> Tensor:
    """Return the windows of this process."""
    return batch if size() == 1 else batch.chunk(size())[dist.get_rank()]


def mean(numbers: Tensor) -> Tensor:
    """Return the mean over all processes."""
    if size() > 1:
        dist.all_reduce(numbers)
        numbers /= size()
    return numbers


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set in any process; all get the same answer."""
    return bool(mean(torch.tensor(float(flag))))


def from_first(make: Callable[[], Value]) -> Value:
    """Return what a function returns in the first process, or raise what it raises there.

    Args:
        make: called in the first process only.
    """
    if size() == 1:
        return make()
    found: list[object] = [None, None]
    if is_first():
        try:
            found[0] = make()
        except GossamerError as error:
            found[1] = error
    dist.broadcast_object_list(found)
    if isinstance(found[1], GossamerError):
        raise found[1]
    return found[0]  # type: ignore[return-value]


def averaged(model: nn.Module) -> nn.Module:
    """Return what to call to train a model: its gradients are averaged over all processes."""
    return model if size() == 1 else DistributedDataParallel(model)
