"""The axis of channels after operations that only move entries.

The operation is run on labels: each entry of a tensor of the same shape holds the index of its
channel. If the labels of the result vary along one axis only, this is the axis of channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gossamer.pruning.analysis import UnknownError
from gossamer.pruning.channels import Features


def labelled(source: Features, value: Tensor) -> Tensor:
    """Return a tensor of a value's shape whose entries are the index of their channel, float64."""
    shape = [1] * value.dim()
    shape[source.axis] = size = len(source.ids)
    labels = torch.arange(size, dtype=torch.float64)
    return labels.view(shape).expand(value.shape).contiguous()


def one_axis(source: Features, moved: Tensor) -> Features | None:
    """Return the features of moved labels; None unless they vary along exactly one axis.

    Args:
        source: features before the move.
        moved: what the move has made of `labelled`.
    """
    size = len(source.ids)
    for axis in range(moved.dim()):
        line = moved
        for other in range(moved.dim()):
            if other != axis:
                line = line.narrow(other, 0, 1)
        if not torch.equal(line.expand(moved.shape), moved):
            continue
        index = line.flatten().round().long()
        if size > 1 and set(index.tolist()) == set(range(size)):
            return Features(axis, source.ids[index], source.constant[index])
    return None


def relabelled(source: Features, value: Tensor, move: Callable[[Tensor], Tensor]) -> Features:
    """Return the features of a moved tensor.

    Args:
        source: features before the move.
        value: tensor before the move; only its shape matters.
        move: the operation on a float64 tensor of that shape.

    Raises:
        UnknownError: not all channels lie along one axis after the move.
    """
    found = one_axis(source, move(labelled(source, value)))
    if found is None:
        raise UnknownError("its features are mixed with places, or some are picked")
    return found
