"""Groupings: which entries of a tensor a penalty takes together.

A grouping is a name, a pair (r, c) for blocks, or a user's own partition. Named groupings are
resolved against the shape of each tensor; the axes are those of torch weights, W[O, I] and
W[O, I, Kh, Kw]:

    element       each entry           neuron, filter  one o          input, channel  one i
    filter_shape  one (i, kh, kw)      kernel          one (o, i)     layer           all
    block(r, c)   r x c tiles of the matrix [O, everything else]
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from gossamer import backend
from gossamer.errors import DTypeError, GossamerError, ShapeError, StructureError
from gossamer.prox.groups import Groups, group_norms, partition

# The fewest axes that a tensor needs.
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


class PenaltyError(GossamerError, ValueError):
    """A value that no penalty has: lam < 0, p outside (0, 1], an unknown name, NaN in a group."""


def check_grouping(given: Any) -> str | tuple[int, int] | Groups:
    """The grouping in one of its three forms: a known name, a block's sizes, or a partition.

    Args:
        given: a name, "block(r, c)", (r, c), labels of all entries in row-major order, a list of
            lists of indices into the flattened tensor, or `Groups`.

    Raises:
        PenaltyError: An unknown name, or block sizes below 1.
        StructureError: Index lists, or `Groups`, that overlap or leave entries out.
        DTypeError: `Groups` whose pointers are no int64 tensors.

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
            raise PenaltyError(f"groups is {given}; a block has at least one row and one column")
        return (given[0], given[1])
    if isinstance(given, list):
        given = [part.reshape(-1) if isinstance(part, Tensor) else part for part in given]
        lists = [part for part in given if isinstance(part, list | tuple | Tensor | np.ndarray)]
        return partition(given, sum(map(len, lists)) if lists else len(given))
    raise PenaltyError(
        f"groups is {given!r:.80}; choose one of {', '.join(_RANKS)}, 'block(r, c)', "
        "or give your own partition: labels of the entries, or lists of indices"
    )


# Indices that were found to name each entry once: a schedule makes a penalty anew at each step.
_permutations: WeakValueDictionary[int, Tensor] = WeakValueDictionary()


def _check_groups(groups: Groups) -> None:
    if not all(type(number) is int for number in groups[:3]):
        raise PenaltyError(f"groups is {groups!r:.80}; outer, count and inner are whole numbers")
    indices = groups.indices
    if (groups.indptr is None) != (indices is None):
        raise StructureError("groups has one of indptr and indices; both are needed, or none")
    if indices is None or _permutations.get(id(indices)) is indices:
        return
    for given in (groups.indptr, indices):
        if not isinstance(given, Tensor) or given.dtype != torch.int64 or not given.is_cpu:
            raise DTypeError("groups has an indptr or indices that is no int64 tensor on the CPU")
    places = indices.sort().values
    if not torch.equal(places, torch.arange(len(places))):
        raise StructureError(
            "the indices of groups overlap or leave entries out; each entry must be in exactly "
            "one group: make them with gossamer.prox.groups.partition"
        )
    _permutations[id(indices)] = indices


def resolve(grouping: str | tuple[int, int] | Groups, shape: Sequence[int]) -> Groups:
    """The groups of a tensor of some shape.

    Args:
        grouping: as `check_grouping` returns it.
        shape: of the tensor.

    Raises:
        ShapeError: The tensor has too few axes for the grouping, is no whole number of blocks, or
            has another number of entries than the partition.

    >>> resolve("input", (8, 3))
    Groups(outer=8, count=3, inner=1, indptr=None, indices=None)
    """
    shape = tuple(shape)
    numel = math.prod(shape)
    if isinstance(grouping, Groups):
        if numel != size(grouping):
            raise ShapeError(
                f"the partition covers {size(grouping)} entries, the tensor of shape {shape} has "
                f"{numel}; a partition holds every entry once"
            )
        return grouping
    if isinstance(grouping, tuple):
        return _blocks(shape, *grouping)
    if len(shape) < _RANKS[grouping]:
        fitting = [name for name, rank in _RANKS.items() if rank <= len(shape)]
        raise ShapeError(
            f"groups={grouping!r} needs a tensor of {_RANKS[grouping]} or more axes, got shape "
            f"{shape}; {', '.join(fitting)} fit: choose one, or leave the tensor out"
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
            "whole blocks are needed: choose sizes that divide it, or pad it"
        )
    across = columns // width
    labels = (torch.arange(rows) // height)[:, None] * across + torch.arange(columns) // width
    return partition(labels.reshape(-1), rows * columns)


def on_weight(
    grouping: str | tuple[int, int] | Groups, weight: Any
) -> tuple[str | Groups, Tensor | None]:
    """The groups of a sparse weight's values, which lie in the order of its layout.

    Groups whose entries are all pruned are left out.

    Args:
        grouping: of the weight as a matrix [rows, cols].
        weight: a `gossamer.SparseWeight`, or whatever has its `shape` and `structure`.

    Returns:
        The grouping of `weight.values`, and which group of the matrix each one is (None: the same).

    Raises:
        ShapeError: The grouping does not fit a matrix of that shape.
    """
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
    """A number a group [count] -> a number an entry [numel], row-major."""
    if groups.indices is None or groups.indptr is None:
        wide = per_group.view(1, -1, 1).expand(groups.outer, groups.count, groups.inner)
        return wide.reshape(-1)
    flat = per_group.new_empty(len(groups.indices))
    flat[groups.indices] = per_group.repeat_interleave(groups.indptr.diff())
    return flat


def sums(entries: Tensor, groups: Groups) -> Tensor:
    """The sum of the entries [numel] of each group [count]."""
    if groups.indices is None or groups.indptr is None:
        return entries.view(groups.outer, groups.count, groups.inner).sum((0, 2))
    where = torch.arange(groups.count).repeat_interleave(groups.indptr.diff())
    total = entries.new_zeros(groups.count)
    return total.index_add_(0, where, entries[groups.indices])


def means(positive: Any, groups: Groups) -> Tensor:
    """The mean of positive entries, of any shape, over each group: float64 [count]."""
    squares = norms(positive**0.5, groups) ** 2
    return squares / sums(torch.ones(size(groups), dtype=torch.float64), groups)


def norms(x: Any, groups: Groups) -> Tensor:
    """The L2 norm of each group: float64 [count]; an error where one is not finite."""
    found = torch.as_tensor(group_norms(x, groups))
    check_finite(found)
    return found


def check_finite(found: Tensor) -> None:
    """Raise on NaN or infinity, which an operator would spread. The sum tells, if it is finite."""
    if not math.isfinite(float(found.sum())) and not torch.isfinite(found).all():
        raise PenaltyError(
            "a group holds NaN or infinity, which would spread over all of its entries; "
            "nothing was changed: look for the step that diverged"
        )


def magnitudes(x: Tensor, groups: Groups) -> Tensor:
    """The absolute values of single entries (NaN stays NaN), else the norms of the groups."""
    return x.abs() if single_entries(groups) else norms(x, groups)


def single_entries(groups: Groups) -> bool:
    """Whether each entry is a group."""
    return groups.indices is None and groups.outer == groups.inner == 1


def check_count(per_group: Tensor, count: int, name: str) -> Tensor:
    """`per_group`, once it holds a number for each group."""
    if len(per_group) != count:
        raise ShapeError(
            f"{name} has {len(per_group)} numbers for {count} groups; "
            "give one number for each group"
        )
    return per_group
