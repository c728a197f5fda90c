"""Rules for views, splits and padding.

A view may cut the axis of features into several, such as heads and their entries. Then one of them
must adapt to another number: the one that is given as -1, or by a size that is asked for. All
channels at one place of this axis are joined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gossamer.pruning.analysis import Analysis, UnknownError
from gossamer.pruning.channels import Features
from gossamer.pruning.moves import labelled, one_axis, relabelled
from gossamer.pruning.sizes import origins_of
from gossamer.pruning.trace import Node, mapped

_FIXED = "a view with a fixed number of features: flatten(1) takes any"
# Attributes that hold the size of one part of a split.
PART_SIZES = ("split_size",)


def called_on(analysis: Analysis, node: Node) -> Callable[[Tensor], Tensor]:
    """Return a node's operation as a function of its first argument."""
    args = mapped(node.args[1:], analysis.value)
    kwargs = mapped(node.kwargs, analysis.value)
    target: Callable[..., Tensor] = node.target
    if getattr(target, "__name__", "") == "__get__":
        return target
    return lambda x: target(x, *args, **kwargs)


def viewed(analysis: Analysis, node: Node) -> Features:
    """Return the features of a view that adapts to their number, by -1 or a queried size."""
    source = analysis.features(node.args[0])
    if source is None:
        raise UnknownError("a view by the number of channels of another tensor")
    labels = labelled(source, analysis.value(node.args[0]))
    moved = called_on(analysis, node)(labels)
    sizes = _sizes(node, labels.dim(), moved.dim())
    counted = {axis for axis, size in enumerate(sizes) if analysis.counts(size)}
    adapting = counted | {axis for axis, size in enumerate(sizes) if size == -1}
    found = one_axis(source, moved)
    if found is None:
        found = _divided(analysis, source, moved, adapting)
    elif node.name == "expand" and found.axis not in adapting:
        raise UnknownError(_FIXED)
    if counted - {found.axis} or (node.name != "repeat" and found.axis not in adapting):
        raise UnknownError(_FIXED)
    if node.name == "repeat" and analysis.value(node).shape[found.axis] != len(source.ids):
        raise UnknownError("it repeats its features")
    given = sizes[found.axis]
    if getattr(given, "exact", False):
        for other, axis in origins_of(given):
            known = analysis.known[other]
            if not isinstance(known, Features) or len(known.ids) != len(found.ids):
                raise UnknownError("a view by the number of channels of another tensor")
            if known.axis == axis:
                analysis.channels.join(known.ids, found.ids)
    return found


def _sizes(node: Node, before: int, after: int) -> list[Any]:
    """Return the size that is given for each axis of the result."""
    given = node.kwargs.get("shape", node.kwargs.get("size", node.args[1:]))
    if node.name == "unflatten":
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0) % before
        parts = node.kwargs.get("sizes", node.args[-1])
        return [-1] * dim + list(parts) + [-1] * (after - dim - len(parts))
    if len(given) == 1 and isinstance(given[0], tuple | list):
        given = given[0]
    if len(given) != after or any(isinstance(size, Node | torch.dtype) for size in given):
        raise UnknownError("a view of another kind")
    return list(given)


def _divided(analysis: Analysis, source: Features, moved: Tensor, adapting: set[int]) -> Features:
    """Return the features of a view that cuts their axis, along the part that adapts."""
    varying = {a for a in range(moved.dim()) if moved.shape[a] > 1 and _varies(moved, a)}
    if len(chosen := adapting & varying) != 1:
        raise UnknownError(_FIXED)
    (axis,) = chosen
    for other in range(moved.dim()):
        if other not in varying:
            moved = moved.narrow(other, 0, 1)
    index = moved.movedim(axis, 0).flatten(1).round().long()  # [size, channels at this place]
    if index.numel() != len(source.ids):
        raise UnknownError("its features are mixed with places, or some are picked")
    ids, constant = source.ids[index], source.constant[index]
    for column in ids.T[1:]:
        analysis.channels.join(ids[:, 0], column)
    same = (constant == constant[:, :1]).all(1)
    return Features(axis, ids[:, 0], torch.where(same, constant[:, 0], torch.nan))


def _varies(moved: Tensor, axis: int) -> bool:
    return not torch.equal(moved.narrow(axis, 0, 1).expand(moved.shape), moved)


def split(analysis: Analysis, node: Node, name: str) -> list[Features]:
    """Return the features of the parts of a split, chunk or unbind."""
    source = analysis.features(node.args[0])
    value = analysis.value(node.args[0])
    if source is None:
        raise UnknownError(f"no rule for {name} of these arguments")
    at = 1 if name == "unbind" else 2
    dim = node.kwargs.get("dim", node.args[at] if len(node.args) > at else 0)
    parts = analysis.value(node)
    if not isinstance(dim, int):
        raise UnknownError(f"a {name} along what cannot be told")
    dim %= value.dim()
    if dim != source.axis:
        apply = called_on(analysis, node)
        return [relabelled(source, value, lambda x, i=i: apply(x)[i]) for i in range(len(parts))]  # type: ignore[misc]
    if name == "unbind" or len({part.shape[dim] for part in parts}) != 1:
        raise UnknownError(f"a {name} into unequal parts of its features")
    ids = source.ids.view(len(parts), -1)
    if name == "split":
        _part_size(analysis, node, ids)
    for other in ids[1:]:  # the parts keep equal sizes
        analysis.channels.join(ids[0], other)
    constants = source.constant.view(len(parts), -1)
    return [Features(dim, i, c) for i, c in zip(ids, constants, strict=True)]


def _part_size(analysis: Analysis, node: Node, ids: Tensor) -> None:
    """Let the size of a part, which the forward takes from an attribute, adapt."""
    given = node.kwargs.get("split_size", node.args[1] if len(node.args) > 1 else None)
    if analysis.counts(given):
        return
    module = analysis.traced.root.get_submodule(node.scope)
    name = next((n for n in PART_SIZES if vars(module).get(n) == given), None)
    if name is None or not isinstance(given, int):
        raise UnknownError("a split with a fixed number of features: chunk takes any")
    analysis.attributes.append((node.scope, name, ids[0]))


def padded(analysis: Analysis, node: Node, source: Features) -> Features:
    """Return the features of a padding of other axes."""
    pad = node.kwargs.get("pad", node.args[1] if len(node.args) > 1 else None)
    place = 2 * (analysis.value(node.args[0]).dim() - 1 - source.axis)
    if not isinstance(pad, tuple | list) or any(pad[place : place + 2]):
        raise UnknownError("a padding of its features")
    mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
    fill = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
    steady = (source.constant == (fill or 0.0)) | torch.tensor(mode != "constant")
    return Features(source.axis, source.ids, torch.where(steady, source.constant, torch.nan))
