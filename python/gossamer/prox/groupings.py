"""Groupings: the partition of a tensor's entries into the groups that a penalty acts on.

A grouping is a name, a pair (r, c) for blocks, or a custom partition. Named groupings are resolved
per tensor shape; the axes are those of torch weights, W[O, I] and W[O, I, Kh, Kw]:

    element       each entry           neuron, filter  one o          input, channel  one i
    filter_shape  one (i, kh, kw)      kernel          one (o, i)     layer           all
    block(r, c)   r x c tiles of the matrix [O, everything else]
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from gossamer import backend
from gossamer.arguments import shown
from gossamer.backend import Structure
from gossamer.errors import ArgumentError, DTypeError, PenaltyError, ShapeError, StructureError

# The smallest number of axes that each grouping needs.
_RANKS = {
    "element": 0,
    "layer": 0,
    "neuron": 2,
    "input": 2,
    "filter": 3,
    "channel": 3,
    "filter_shape": 3,
    "kernel": 3,
}
_BLOCK = re.compile(r"block\s*\(?\s*(\d{1,9})\s*[,x]\s*(\d{1,9})\s*\)?", re.ASCII)


class Groups(NamedTuple):
    """A partition of a tensor's entries into groups.

    Attributes:
        outer: first size of the row-major view [outer, count, inner] of the entries, in which the
            middle index is the group. Irregular groups have outer = inner = 1.
        count: number of groups.
        inner: number of consecutive entries of one group.
        indptr: int64 [count + 1] for irregular groups (made by `partition`), else None.
        indices: int64 [numel]: group g has the entries indices[indptr[g]:indptr[g + 1]].
    """

    outer: int
    count: int  # type: ignore[assignment]  # shadows tuple.count, which is unused
    inner: int
    indptr: Tensor | None = None
    indices: Tensor | None = None


def partition(
    groups: Tensor | np.ndarray | Sequence[int] | Sequence[Sequence[int]], numel: int
) -> Groups:
    """Build a custom partition.

    Args:
        groups: the group of each entry, integers [numel] in [0, numel); or one list of entry
            indices per group. Each entry belongs to exactly one group; groups may be empty.
        numel: number of entries of the tensor, flattened in row-major order.

    Returns:
        Groups for any tensor with `numel` entries.

    Raises:
        StructureError: an entry is in no group or in several, or an index is out of range.
        DTypeError: labels or indices are not integers.
        ShapeError: the number of labels is not `numel`.
        ArgumentError: `numel` is below 1.

    Example:
        >>> partition([[0, 3], [1, 2]], 4).indices
        tensor([0, 3, 1, 2])
    """
    if numel < 1:
        raise ArgumentError(f"got numel={numel}; a partition needs at least one entry")
    if isinstance(groups, Tensor | np.ndarray) or all(isinstance(g, int) for g in groups):
        labels = _whole_numbers(groups, "labels")
        if labels.numel() != numel:
            raise ShapeError(
                f"got {labels.numel()} labels for {numel} entries; one label per entry is needed"
            )
        _check_range(labels, numel, "labels")
        order = torch.argsort(labels, stable=True)
        sizes = torch.bincount(labels)
    else:
        lists = [_whole_numbers(g, "indices") for g in groups]
        order = torch.cat(lists)
        sizes = torch.tensor([len(g) for g in lists])
        _check_range(order, numel, "indices")
        seen = torch.bincount(order, minlength=numel)
        if bool((seen != 1).any()):
            at = int((seen != 1).nonzero()[0])
            raise StructureError(
                f"entry {at} is in {int(seen[at])} groups; each of the {numel} entries must be in "
                "exactly one"
            )
    indptr = torch.zeros(len(sizes) + 1, dtype=torch.int64)
    torch.cumsum(sizes, 0, out=indptr[1:])
    return Groups(1, len(sizes), 1, indptr, order)


def _whole_numbers(numbers: Any, what: str) -> Tensor:
    try:
        found = torch.as_tensor(numbers)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DTypeError(f"{what} are not integers: {str(error).strip():.200}") from None
    if found.layout != torch.strided or found.device.type == "meta":
        raise DTypeError(
            f"{what} are on {found.device}, {found.layout}; a dense tensor with memory is needed"
        )
    if found.numel() == 0:
        return torch.zeros(0, dtype=torch.int64)
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise DTypeError(f"{what} have dtype {found.dtype}; integers are needed")
    return found.reshape(-1).to("cpu", torch.int64)


def _check_range(numbers: Tensor, numel: int, what: str) -> None:
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= numel:
        raise StructureError(
            f"{what} lie in [{low}, {high}]; they must lie in [0, {numel}), the entries' range"
        )


def check_grouping(given: Any) -> str | tuple[int, int] | Groups:
    """Check a grouping and convert it to a known name, a block's sizes, or a partition.

    Args:
        given: a name, "block(r, c)", (r, c), labels of all entries in row-major order, a list of
            lists of indices into the flattened tensor, or `Groups`.

    Returns:
        A name, a pair (r, c), or `Groups`.

    Raises:
        PenaltyError: the name is unknown, or a block size is below 1.
        StructureError: index lists or `Groups` overlap or leave entries out.
        DTypeError: the pointers of `Groups` are not int64 CPU tensors.

    Example:
        >>> check_grouping("block(4, 8)")
        (4, 8)
    """
    if isinstance(given, Groups):
        _check_groups(given)
        return given
    if isinstance(given, str):
        name = given.strip().lower()
        if name in _RANKS:
            return name
        if found := _BLOCK.fullmatch(name):
            given = (int(found[1]), int(found[2]))
    if isinstance(given, Tensor | np.ndarray):
        return partition(given, math.prod(given.shape))
    if isinstance(given, tuple) and len(given) == 2 and all(type(size) is int for size in given):
        if min(given) < 1:
            raise PenaltyError(f"groups is {given}; a block needs at least one row and one column")
        return (given[0], given[1])
    if isinstance(given, list):
        given = [part.reshape(-1) if isinstance(part, Tensor) else part for part in given]
        lists = [part for part in given if isinstance(part, list | tuple | Tensor | np.ndarray)]
        return partition(given, sum(map(len, lists)) if lists else len(given))
    raise PenaltyError(
        f"groups is {given!r:.80}; choose one of {', '.join(_RANKS)}, 'block(r, c)', "
        "or give a custom partition: labels of the entries, or lists of indices"
    )


# Indices already found to be permutations: a schedule rebuilds its penalty at each step.
_permutations: WeakValueDictionary[int, Tensor] = WeakValueDictionary()


def _check_groups(groups: Groups) -> None:
    if not all(type(number) is int for number in groups[:3]):
        raise PenaltyError(f"groups is {groups!r:.80}; outer, count and inner must be integers")
    indices = groups.indices
    if (groups.indptr is None) != (indices is None):
        raise StructureError("groups has one of indptr and indices; give both or neither")
    if indices is None or _permutations.get(id(indices)) is indices:
        return
    for given in (groups.indptr, indices):
        if not isinstance(given, Tensor) or given.dtype != torch.int64 or not given.is_cpu:
            raise DTypeError("groups has an indptr or indices that is not an int64 CPU tensor")
    places = indices.sort().values
    if not torch.equal(places, torch.arange(len(places))):
        raise StructureError(
            "the indices of groups overlap or leave entries out; each entry must be in exactly "
            "one group: make them with gossamer.prox.partition"
        )
    _permutations[id(indices)] = indices


def resolve(grouping: str | tuple[int, int] | Groups, shape: Sequence[int]) -> Groups:
    """Resolve a grouping to the groups of a tensor with the given shape.

    Args:
        grouping: a grouping, as returned by `check_grouping`.
        shape: shape of the tensor.

    Returns:
        The groups of the tensor's entries.

    Raises:
        ShapeError: the tensor has too few axes for the grouping, is not divisible into the blocks,
            or does not have the partition's number of entries.

    Example:
        >>> resolve("input", (8, 3))
        Groups(outer=8, count=3, inner=1, indptr=None, indices=None)
    """
    shape = tuple(shape)
    numel = math.prod(shape)
    if isinstance(grouping, Groups):
        if numel != size(grouping):
            raise ShapeError(
                f"the partition covers {size(grouping)} entries and the tensor of shape {shape} "
                f"has {numel}; each entry must be in the partition exactly once"
            )
        return grouping
    if isinstance(grouping, tuple):
        return _blocks(shape, *grouping)
    if len(shape) < _RANKS[grouping]:
        fitting = [name for name, rank in _RANKS.items() if rank <= len(shape)]
        raise ShapeError(
            f"groups={grouping!r} needs a tensor of {_RANKS[grouping]} or more axes, got shape "
            f"{shape}; {', '.join(fitting)} fit: choose one, or do not penalise the tensor"
        )
    if grouping == "element":
        return Groups(1, numel, 1, None, None)
    if grouping == "layer":
        return Groups(1, 1, numel, None, None)
    rows, columns = shape[0], shape[1]
    inner = math.prod(shape[2:])
    outer_count_inner = {
        "neuron": (1, rows, columns * inner),
        "filter": (1, rows, columns * inner),
        "input": (rows, columns, inner),
        "channel": (rows, columns, inner),
        "filter_shape": (rows, columns * inner, 1),
        "kernel": (1, rows * columns, inner),
    }[grouping]
    return Groups(*outer_count_inner, None, None)


@lru_cache(maxsize=64)
def _blocks(shape: tuple[int, ...], height: int, width: int) -> Groups:
    rows = shape[0] if shape else 0
    columns = math.prod(shape[1:])
    if len(shape) < 2 or rows % height or columns % width:
        raise ShapeError(
            f"groups=block({height}, {width}) got shape {shape}, a matrix of {rows} x {columns}; "
            "whole blocks are needed: choose block sizes that divide it, or pad it"
        )
    across = columns // width
    labels = (torch.arange(rows) // height)[:, None] * across + torch.arange(columns) // width
    return partition(labels.reshape(-1), rows * columns)


def on_weight(
    grouping: str | tuple[int, int] | Groups, weight: Any
) -> tuple[str | Groups, Tensor | None]:
    """Group a sparse weight's values, which are in the order of its layout.

    Groups whose entries are all pruned are left out.

    Args:
        grouping: grouping of the weight as a matrix [rows, cols].
        weight: a `gossamer.SparseWeight`, or an object with its `shape` and `structure`.

    Returns:
        The grouping of `weight.values`, and the index in the matrix's grouping of each of its
        groups, or None if both groupings are the same.

    Raises:
        ShapeError: the grouping does not fit the weight's shape.
    """
    if not isinstance(getattr(weight, "structure", None), Structure):
        raise DTypeError(
            f"a penalty is put on {shown(weight)}; a SparseWeight is needed: for a dense tensor "
            "use the penalty itself"
        )
    where = backend.coordinates(weight.structure)
    if grouping == "element":
        return "element", where
    if grouping == "layer":
        return "layer", None
    groups = resolve(grouping, tuple(weight.shape))
    kept, labels = torch.unique(
        spread(torch.arange(groups.count), groups)[where], return_inverse=True
    )
    return partition(labels, len(where)), kept


def size(groups: Groups) -> int:
    """The number of entries that the groups cover."""
    if groups.indices is not None:
        return len(groups.indices)
    return groups.outer * groups.count * groups.inner


def spread(per_group: Tensor, groups: Groups) -> Tensor:
    """Expand numbers per group [count] to numbers per entry [numel], row-major."""
    if groups.indices is None or groups.indptr is None:
        wide = per_group.view(1, -1, 1).expand(groups.outer, groups.count, groups.inner)
        return wide.reshape(-1)
    flat = per_group.new_empty(len(groups.indices))
    flat[groups.indices] = per_group.repeat_interleave(groups.indptr.diff())
    return flat
