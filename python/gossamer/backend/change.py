"""Changing the structure of a weight: the move of what belongs to its entries."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gossamer.arguments import check
from gossamer.backend.registry import module_of
from gossamer.backend.structure import Structure, check_structure


def move(
    old: Structure, new: Structure, values: Sequence[Tensor], out: Sequence[Tensor] | None = None
) -> None:
    """Move values to the entries of a new structure; those of a new entry are 0.

    Args:
        old: The structure before.
        new: The structure after, with the rows, columns, vector and width of blocks of `old`.
        values: [nnz of old] each, float32, float64 or bfloat16; contiguous.
        out: [nnz of new] each, of the dtypes of `values`; contiguous, overwritten. Each is the
            array of `values` itself or memory of its own. None moves in place: both structures
            have as many entries.

    Raises:
        ShapeError, DTypeError: Sizes or dtypes do not fit.
        StructureError: A structure is damaged.
        ArgumentError: Arrays share memory.

    Example:
        >>> import torch
        >>> from gossamer.backend import encode
        >>> old = encode(torch.tensor([[True, False, True]]), vector=1)
        >>> new = encode(torch.tensor([[False, True, True]]), vector=1)
        >>> values = torch.tensor([5.0, 7.0])
        >>> move(old, new, [values])
        >>> values.tolist()
        [0.0, 7.0]
    """
    check(move, locals())
    check_structure(old, "old"), check_structure(new, "new")
    module = module_of(new.indices)
    module.products.move(*old, *new, values, values if out is None else out)


__all__ = ["move"]
