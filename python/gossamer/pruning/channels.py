"""Channels of a network: which belong together, which are constant, which are needed.

A channel is a number. Tensors that must keep or lose a channel together (the two branches of a sum,
a feature map and its flattened copy) carry the same number. A channel is alive if it is pinned, or
if a living output of a layer reads it with a non-zero weight and it is not a constant that can move
into the layer's bias. All other channels are removed at once; the living outputs do not change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gossamer.pruning.weights import oriented, replace_weight, resize


@dataclass
class Features:
    """What is known of a tensor along its axis of channels.

    Attributes:
        axis: the axis, counted from 0.
        ids: int64 [size], the channel at each index.
        constant: float64 [size], the value where it is the same for every input and position; NaN
            where it varies.
    """

    axis: int
    ids: Tensor
    constant: Tensor

    def varying(self, axis: int | None = None) -> Features:
        """Return the same channels, of which no constant is known, maybe along another axis."""
        unknown = torch.full_like(self.constant, torch.nan)
        return Features(self.axis if axis is None else axis, self.ids, unknown)


@dataclass
class Mixing:
    """A layer whose outputs read all inputs: Linear, Conv1D, or a convolution without groups.

    Attributes:
        name: the module's name.
        reads: bool [outputs, inputs], True where a weight is not zero.
        source: features of the input.
        foldable: bool [inputs], True if a constant acts like a bias; zero padding prevents it.
        out: int64 [outputs], channels of the output.
        products: multiplications per pair of an output and an input, in the call on the example.
    """

    name: str
    reads: Tensor
    source: Features
    foldable: Tensor
    out: Tensor
    products: int


@dataclass
class Channelwise:
    """A layer with separate parameters per channel: BatchNorm, PReLU, convolution in groups.

    A group of several channels is kept or removed as a whole.

    Attributes:
        name: the module's name.
        source: int64 [inputs], channels of the input.
        out: int64 [outputs], the same channels, each repeated once per output.
        groups: number of groups of a convolution, else 1.
        products: multiplications per output, in the call on the example.
    """

    name: str
    source: Tensor
    out: Tensor
    groups: int = 1
    products: int = 0


class Channels:
    """The channels of one network."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._pinned: dict[int, str] = {}  # why, by root

    def fresh(self, count: int) -> Tensor:
        """Make new channels and return their numbers, int64 [count]."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def join(self, left: Tensor, right: Tensor) -> None:
        """Join each pair of channels: both are kept, or both are removed."""
        for a, b in zip(left.flatten().tolist(), right.flatten().tolist(), strict=True):
            gone, root = self._root(a), self._root(b)
            self._parent[gone] = root
            if gone in self._pinned:
                self._pinned.setdefault(root, self._pinned[gone])

    def pin(self, ids: Tensor, why: str) -> bool:
        """Keep these channels; return whether one of them was not pinned before."""
        fresh = {self._root(i) for i in ids.flatten().tolist()} - self._pinned.keys()
        self._pinned |= dict.fromkeys(fresh, why)
        return bool(fresh)

    def why(self, ids: Tensor) -> list[str | None]:
        """Return why each channel is kept; None for those that may be removed."""
        return [self._pinned.get(self._root(i)) for i in ids.flatten().tolist()]

    def pinned(self) -> Tensor:
        """Return the roots of the channels that are kept, int64, sorted."""
        roots = {self._root(i) for i in self._pinned}
        return torch.tensor(sorted(roots), dtype=torch.int64)

    def roots(self, ids: Tensor) -> Tensor:
        """Return one number per set of joined channels, in the shape of ids."""
        found = [self._root(i) for i in ids.flatten().tolist()]
        return torch.tensor(found, dtype=torch.int64).view(ids.shape)

    def __len__(self) -> int:
        return len(self._parent)

    def alive(self, layers: list[Mixing]) -> Tensor:
        """Return the needed channels as bool by number; each layer keeps at least one output."""
        alive = torch.zeros(len(self._parent), dtype=torch.bool)
        alive[self.pinned()] = True
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
            alive[out[int(layer.reads.sum(1).argmin())]] = True  # fewest inputs

    def _root(self, i: int) -> int:
        parent = self._parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i


def cut(copy: nn.Module, layers: list[Mixing | Channelwise], alive: Tensor) -> None:
    """Remove the channels that are not needed from the modules of a model, in place.

    Args:
        copy: the model.
        layers: the layers of the model that can become smaller.
        alive: bool by number of the channel, True where it stays.
    """
    for layer in layers:
        module = copy.get_submodule(layer.name)
        ids = layer.source.ids if isinstance(layer, Mixing) else layer.source
        inputs, outputs = alive[ids], alive[layer.out]
        if bool(inputs.all()) and bool(outputs.all()):
            continue
        groups = 1
        if isinstance(layer, Mixing):
            gone = layer.foldable & ~inputs & (layer.source.constant != 0)
            _cut_mixing(module, inputs, outputs, gone, layer.source.constant)
        else:
            groups = int(inputs.sum()) * layer.groups // len(inputs)
            _cut_channelwise(module, outputs)
        resize(module, int(inputs.sum()), int(outputs.sum()), groups)


def _cut_mixing(
    module: nn.Module, inputs: Tensor, outputs: Tensor, gone: Tensor, constant: Tensor
) -> None:
    weight = oriented(module)
    bias = module.bias
    rows, columns, folded = (
        flags.nonzero().flatten().to(weight.device) for flags in (outputs, inputs, gone)
    )
    kept = weight[rows]
    read = kept.index_select(1, folded).double()
    if read.dim() > 2:
        read = read.flatten(2).sum(2)  # every tap of a filter reads the constant
    shift = read @ constant[gone].to(read)
    trained = module.weight.requires_grad
    if isinstance(bias, nn.Parameter):
        trained = bias.requires_grad
        shift = shift + bias.detach()[rows].double()
    replace_weight(module, kept.index_select(1, columns))
    if isinstance(bias, nn.Parameter) or bool(shift.any()):
        module.bias = nn.Parameter(shift.to(weight), bool(trained))


def _cut_channelwise(module: nn.Module, outputs: Tensor) -> None:
    for name, tensor in [
        *module.named_parameters(recurse=False),
        *module.named_buffers(recurse=False),
    ]:
        if tensor.dim() == 0:
            continue  # the count of batches
        cut = tensor.detach()[outputs.to(tensor.device)].clone()
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(module, name, nn.Parameter(cut, tensor.requires_grad) if is_parameter else cut)
