"""Changing the structure of a weight: which entry stays which, and the move of what is theirs."""

from __future__ import annotations

from torch import Tensor

from gossamer.backend.arrays import tensor_of
from gossamer.backend.registry import module_of
from gossamer.backend.structure import Structure, check_structure


def match(old: Structure, new: Structure) -> Tensor:
    """Return where each entry of a structure is in another one.

    Args:
        old: The structure before.
        new: The structure after, with the rows, columns, vector and width of blocks of `old`.

    Returns:
        int32 [entries of new]: the entry of `old` at the same place, or -1 where it keeps none.

    Raises:
        ShapeError: The sizes differ.

    Example:
        >>> import torch
        >>> from gossamer.backend import encode
        >>> old = encode(torch.tensor([[True, False, True]]), vector=1)
        >>> match(old, encode(torch.tensor([[False, True, True]]), vector=1)).tolist()
        [-1, 1]
    """
    check_structure(old, "old"), check_structure(new, "new")
    return tensor_of(module_of(new.indices).products.match(*old, *new))


def move(origins: Tensor, vector: int, values: Tensor, out: Tensor) -> Tensor:
    """Move values to the entries of a new structure; those of a new entry are 0.

    Args:
        origins: int32 [entries], from `match`.
        vector: Values per entry.
        values: [entries of the old structure * vector], float32, float64 or bfloat16; contiguous.
        out: [entries * vector], the dtype of `values`; contiguous, overwritten.

    Returns:
        `out`.

    Raises:
        ArgumentError: `origins` names an entry that `values` does not have.
        ShapeError, DTypeError: Sizes or dtypes do not fit.

    Example:
        >>> import torch
        >>> origins = torch.tensor([-1, 1], dtype=torch.int32)
        >>> move(origins, 1, torch.tensor([5.0, 7.0]), torch.empty(2)).tolist()
        [0.0, 7.0]
    """
    module_of(values).products.move(origins, vector, values, out)
    return out


__all__ = ["match", "move"]
