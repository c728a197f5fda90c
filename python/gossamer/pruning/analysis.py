"""Analysis of the channels of a traced model: applies each operation's rule in graph order.

A rule returns the features of a result from those of its arguments, or raises UnknownError. Then,
and for every operation without a rule, all incoming channels are kept and nothing is known of the
result.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from gossamer.errors import GossamerError
from gossamer.pruning.channels import Channels, Channelwise, Features, Mixing
from gossamer.pruning.sizes import Origins, origins_of
from gossamer.pruning.trace import Node, Trace
from gossamer.pruning.units import Unit

# What is known of a result: its features, one entry for each of several results, or nothing.
Known: TypeAlias = Features | list[Features] | None


INSIDE = "another module calls it as well"


class UnknownError(GossamerError):
    """The channels that an operation reads must be kept; the message is the reason."""


class Analysis:
    """What is known of the channels of a traced model during the walk over its graph.

    Attributes:
        traced: the model.
        channels: all channels found so far.
        layers: layers that can become smaller, in call order.
        notes: one line per reason to keep channels.
        known: the features of each node so far; None where all are needed.
        frozen: modules that must not change, with the reason.
        units: heads and experts' neurons, which one module holds, and their channels.
        attributes: numbers of channels that a module stores: its name, the attribute, the channels.
        reached: names of the parameters that the call has used, once `forget` was called.
        read: names of the matrices that functions have read, likewise.
        skipped: modules that were called but cannot become smaller, with the reason.
    """

    def __init__(self, traced: Trace) -> None:
        self.traced = traced
        self.channels = Channels()
        self.layers: list[Mixing | Channelwise] = []
        self.notes: dict[str, None] = {}
        self.known: dict[Node, Known] = {}
        self.frozen = _frozen(traced)
        self.units: list[tuple[Unit, Tensor]] = []
        self.attributes: list[tuple[str, str, Tensor]] = []
        self.skipped: dict[str, str] = {}
        self.reached: set[str] = set()
        self.read: list[str] = []
        self.place = ""  # of the operation whose rule runs

    def settle(self, node: Node, known: Known) -> None:
        """Record the features of a node's result, also for the tensors that the node overwrote."""
        self.known[node] = known
        for tensor in self.traced.changed.get(node, ()):
            for earlier, features in self.known.items():
                value = self.traced.values.get(earlier)
                if not isinstance(features, Features) or not _same_storage(value, tensor):
                    continue
                same = (
                    isinstance(known, Features)
                    and known.axis == features.axis
                    and torch.equal(known.ids, features.ids)
                    and _same_view(value, self.traced.values[node])
                )
                constant = known.constant if same else torch.full_like(features.constant, torch.nan)  # type: ignore[union-attr]
                self.known[earlier] = Features(features.axis, features.ids, constant)

    def forget(self) -> None:
        """Free the model and the results of all operations; channels and layers stay known."""
        root = self.traced.root
        used = {
            id(p) for n in self.traced.nodes if n.module is not None for p in n.target.parameters()
        }
        used |= self.traced.read
        self.read = [
            name
            for name, parameter in root.named_parameters()
            if parameter.dim() > 1 and id(parameter) in self.traced.read
        ]
        own = root.named_parameters(remove_duplicate=False)
        self.reached = {name for name, parameter in own if id(parameter) in used}
        for held in (self.traced.values, self.traced.changed, self.known, self.traced.nodes):
            held.clear()
        self.traced = self.traced._replace(root=nn.Module(), output=None)

    def hold(self, node: Node, why: str, where: str = "") -> None:
        """Keep every channel that a node reads; add a note if there is a reason to name."""
        place = where or node.module or node.scope or "the forward of the model"
        reason = f"{place}: {why}" if why else f"{place} needs all of its features"
        held = False
        for source in node.inputs:
            known = self.known.get(source)
            for part in known if isinstance(known, list) else [known]:
                if part is not None:
                    held |= self.channels.pin(part.ids, reason)
        if held and why:
            self.note(place, why)

    def note(self, where: str, why: str) -> None:
        """Add a note on a module or on the forward of one."""
        self.notes[f"{where or 'the forward of the model'}: {why}"] = None

    def value(self, argument: Any) -> Any:
        """Return the value of a node's argument on the example input."""
        return self.traced.values[argument] if isinstance(argument, Node) else argument

    def is_tensor(self, argument: Any) -> bool:
        """Return whether an argument is a tensor."""
        return isinstance(self.value(argument), Tensor)

    def features(self, argument: Any) -> Features | None:
        """Return the features of a tensor argument, or None."""
        known = self.known[argument] if isinstance(argument, Node) else None
        return None if isinstance(known, list) else known

    def counts(self, number: Any) -> Origins:
        """Return the sizes along an axis of channels that a number is computed from."""
        found = set()
        for node, axis in origins_of(number):
            known = self.known.get(node)
            if isinstance(known, Features) and known.axis == axis:
                found.add((node, axis))
        return frozenset(found)

    def whole(self, argument: Any, axis: int) -> Features:
        """Return the features of a tensor along an axis; pinned ones where nothing is known.

        Raises:
            UnknownError: the channels lie along another axis.
        """
        known = self.features(argument)
        if known is None:
            size = self.value(argument).shape[axis]
            ids = self.channels.fresh(size)
            self.channels.pin(ids, f"{self.place}: they meet a tensor whose features are not known")
            known = Features(axis, ids, torch.full((size,), torch.nan, dtype=torch.float64))
        if known.axis != axis:
            raise UnknownError("its features lie along another axis than it works on")
        return known


def _frozen(traced: Trace) -> dict[str, str]:
    """Return the modules with several calls, names or co-owners of a tensor, with the reason."""
    root = traced.root
    names: dict[nn.Module, list[str]] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    owners: dict[int, set[nn.Module]] = {}
    for module in names:
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            owners.setdefault(id(tensor), set()).add(module)
    called: dict[nn.Module, int] = {}
    for node in traced.nodes:
        if node.module is not None:
            module = root.get_submodule(node.module)
            called[module] = called.get(module, 0) + 1
    inside = tuple(f"{name}." for name in (*traced.opaque, *traced.heads) if name)
    frozen: dict[str, str] = {}
    for module, own in names.items():
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        why = ""
        if called.get(module, 0) > 1:
            why = "it is called more than once"
        elif any(len(owners[id(tensor)]) > 1 for tensor in tensors):
            why = "it shares a weight with another module"
        elif any(id(tensor) in traced.read for tensor in tensors):
            why = "its weight is read outside the module"
        elif len(own) > 1 or own[0].startswith(inside):
            why = INSIDE
        if why:
            frozen |= dict.fromkeys(own, why)
    return frozen


def _same_storage(value: object, tensor: Tensor) -> bool:
    return (
        isinstance(value, Tensor)
        and value.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    )


def _same_view(value: Any, other: Any) -> bool:
    return (
        _same_storage(value, other)
        and value.shape == other.shape
        and value.stride() == other.stride()
        and value.storage_offset() == other.storage_offset()
    )
