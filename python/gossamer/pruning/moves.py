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


def relabelled(source: Features, value: Tensor, move: Callable[[Tensor], Tensor]) -> Features:
    """Return the features of a moved tensor.

    Args:
        source: features before the move.
        value: tensor before the move; only its shape matters.
        move: the operation on a float64 tensor of that shape.

    Raises:
        UnknownError: not all channels lie along one axis after the move.
    """
    size = len(source.ids)
    shape = [1] * value.dim()
    shape[source.axis] = size
    labels = torch.arange(size, dtype=torch.float64).view(shape).expand(value.shape).contiguous()
    moved = move(labels)
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
    raise UnknownError("its features are mixed with places, or some are picked")
