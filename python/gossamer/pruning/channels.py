"""Channels of a network: which stay and go together, which are constant, which are needed.

A channel is a number. Places that must keep or lose a channel at the same time (the two branches
of a sum, a feature map and its flattened copy) carry the same number. A channel is alive if it is
pinned, or if a living output of some layer reads it with a non-zero weight and it is not a
constant that can go into that layer's bias. The rest can be removed, all at once:
the living outputs see the same numbers as before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Features:
    """What is known of a tensor along its axis of channels.

    Attributes:
        axis: the axis, counted from 0.
        ids: int64 [size], the channel at each index.
        constant: float64 [size], the value for any input and at any other index; NaN if it varies.
    """

    axis: int
    ids: Tensor
    constant: Tensor


@dataclass
class Size:
    """A number that is the size of an axis of channels."""

    ids: Tensor


@dataclass
class Mixing:
    """A layer whose every output reads every input: Linear, or a convolution without groups.

    Attributes:
        name: the module's name.
        reads: bool [outputs, inputs], some weight is not zero.
        source: the input.
        foldable: bool [inputs], a constant that acts like a bias: not one beside zero padding.
        out: int64 [outputs], the channels it makes.
    """

    name: str
    reads: Tensor
    source: Features
    foldable: Tensor
    out: Tensor


@dataclass
class Channelwise:
    """A layer with parameters of its own for each channel: BatchNorm, PReLU, depthwise conv.

    Attributes:
        name: the module's name.
        source: int64 [inputs], the channels it takes.
        out: int64 [outputs], the same channels, each as often as it has outputs.
    """

    name: str
    source: Tensor
    out: Tensor


class Channels:
    """The channels of one network."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._pinned: set[int] = set()

    def fresh(self, count: int) -> Tensor:
        """Make new channels; their numbers, int64 [count]."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def join(self, left: Tensor, right: Tensor) -> None:
        """Keep or lose each pair of channels together."""
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            self._parent[self._root(a)] = self._root(b)

    def pin(self, ids: Tensor) -> bool:
        """Never remove these; whether one of them could have been removed until now."""
        fresh = {self._root(i) for i in ids.tolist()} - {self._root(i) for i in self._pinned}
        self._pinned |= fresh
        return bool(fresh)

    def roots(self, ids: Tensor) -> Tensor:
        """One number for channels that stay or go together, shaped as ids."""
        return torch.tensor([self._root(i) for i in ids.tolist()], dtype=torch.int64)

    def alive(self, layers: list[Mixing]) -> Tensor:
        """Which channels are needed: bool by number. Each layer keeps one output at least."""
        alive = torch.zeros(len(self._parent), dtype=torch.bool)
        alive[self.roots(torch.tensor(sorted(self._pinned), dtype=torch.int64))] = True
        sites = [(layer, self.roots(layer.source.ids), self.roots(layer.out)) for layer in layers]
        while True:
            before = int(alive.sum())
            for layer, source, out in reversed(sites):
                read = layer.reads[alive[out]].any(0) & ~layer.foldable
                alive[source[read]] = True
            if int(alive.sum()) > before:
                continue
            empty = next((site for site in sites if not bool(alive[site[2]].any())), None)
            if empty is None:
                return alive[self.roots(torch.arange(len(alive)))]
            layer, _, out = empty
            alive[out[int(layer.reads.sum(1).argmin())]] = True  # the one that needs least

    def _root(self, i: int) -> int:
        parent = self._parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i


def cut(copy: nn.Module, layers: list[Mixing | Channelwise], channels: Channels) -> list[str]:
    """Remove the channels that nothing needs from the modules of a model, in place.

    Args:
        copy: the model.
        layers: its layers by name.
        channels: their channels.

    Returns:
        Names of the modules that changed.
    """
    alive = channels.alive([layer for layer in layers if isinstance(layer, Mixing)])
    changed = []
    for layer in layers:
        module = copy.get_submodule(layer.name)
        ids = layer.source.ids if isinstance(layer, Mixing) else layer.source
        inputs, outputs = alive[ids], alive[layer.out]
        if bool(inputs.all()) and bool(outputs.all()):
            continue
        changed.append(layer.name)
        if isinstance(layer, Mixing):
            gone = layer.foldable & ~inputs & (layer.source.constant != 0)
            _cut_mixing(module, inputs, outputs, gone, layer.source.constant)
        else:
            _cut_channelwise(module, inputs, outputs)
        _resize(module, int(inputs.sum()), int(outputs.sum()))
    return changed


def _cut_mixing(
    module: nn.Module, inputs: Tensor, outputs: Tensor, gone: Tensor, constant: Tensor
) -> None:
    weight: nn.Parameter = module.weight  # type: ignore[assignment]
    bias = module.bias
    rows, columns, folded = (
        flags.nonzero().flatten().to(weight.device) for flags in (outputs, inputs, gone)
    )
    kept = weight.detach()[rows]
    read = kept.index_select(1, folded).double()
    if read.dim() > 2:
        read = read.flatten(2).sum(2)  # a constant meets every tap of a filter
    shift = read @ constant[gone].to(read)
    trained = weight.requires_grad
    if isinstance(bias, nn.Parameter):
        trained = bias.requires_grad
        shift = shift + bias.detach()[rows].double()
    module.weight = nn.Parameter(kept.index_select(1, columns).contiguous(), weight.requires_grad)
    if isinstance(bias, nn.Parameter) or bool(shift.any()):
        module.bias = nn.Parameter(shift.to(weight), trained)


def _cut_channelwise(module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
    for name, tensor in [
        *module.named_parameters(recurse=False),
        *module.named_buffers(recurse=False),
    ]:
        if tensor.dim() == 0:
            continue  # the count of batches
        cut = tensor.detach()[outputs.to(tensor.device)].clone()
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(module, name, nn.Parameter(cut, tensor.requires_grad) if is_parameter else cut)


def _resize(module: nn.Module, inputs: int, outputs: int) -> None:
    """Make the numbers that a module says of itself true again."""
    depthwise = getattr(module, "groups", 1) > 1
    sizes = {
        "in_features": inputs,
        "out_features": outputs,
        "in_channels": inputs,
        "out_channels": outputs,
        "num_features": outputs,
        "num_parameters": outputs,
    }
    for name, size in sizes.items():
        if hasattr(module, name):
            setattr(module, name, size)
    if depthwise:
        module.groups = inputs  # type: ignore[assignment]
