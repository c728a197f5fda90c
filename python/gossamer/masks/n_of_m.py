"""N:M selection of a dense weight at every step, compiled: values and structure in one pass.

A recipe that trains a dense weight and uses the N largest of every M entries selects before each
product. `select_nm` reads the weight once and writes the packed form that the kernels read, without
a dense intermediate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.arguments import check
from gossamer.backend import Layout, Structure, check_array
from gossamer.backend import masks as kernels
from gossamer.backend.structure import check_structure
from gossamer.errors import ArgumentError, DTypeError, PatternError, ShapeError
from gossamer.patterns import NM, parse_pattern

__all__ = ["add_pruned_", "mask_difference", "select_nm"]


def select_nm(
    weight: Tensor, pattern: str | NM, out: tuple[Tensor, Structure] | None = None
) -> tuple[Tensor, Structure]:
    """Select the entries with the largest magnitudes of every group, and pack them.

    Values and structure are those of `magnitude_mask`, `backend.encode` and `backend.gather`, bit
    for bit. A NaN ranks above infinity, so that the selection does not hide it.

    Args:
        weight: float32, float64 or bfloat16 `[rows, cols]`; copied unless the entries of a row
            are contiguous. Not differentiated.
        pattern: an N:M pattern or its text. With V > 1 the score of a column of V rows is the sum
            of its magnitudes, in float64.
        out: the result of an earlier call for a weight of this shape, dtype and pattern, to be
            overwritten. Allocating new memory at every step costs more than the selection.

    Returns:
        Values [nnz] of the weight's dtype and their structure; of equal magnitudes the lower
        column is kept.

    Raises:
        DTypeError: not a tensor of those dtypes, or `out` is not such a pair.
        ShapeError: not of rank 2, or `out` belongs to another shape or pattern.
        ArgumentError: `out` shares memory with the weight.
        PatternError: not an N:M pattern, or the shape does not fit it.
        DeviceError: not on the CPU.

    Example:
        >>> values, structure = select_nm(torch.tensor([[1.0, -3.0, 2.0, 0.0]]), "2:4")
        >>> values, structure.indices
        (tensor([-3.,  2.]), tensor([1, 2], dtype=torch.uint8))
    """
    parsed = parse_pattern(pattern)
    if not isinstance(parsed, NM):
        raise PatternError(
            f"select_nm got pattern {parsed}; it packs N:M patterns: choose one such as 2:4, or "
            "use magnitude_mask and backend.encode"
        )
    weight = check_array(weight, "weight", rank=2)
    rows, cols = weight.shape
    parsed.check_shape(rows, cols, "select_nm")
    weight = _side_by_side(weight)
    wide = 256 // parsed.m * parsed.m
    layout = Layout(rows, cols, parsed.panel, wide, parsed.n, parsed.m)
    if out is not None:
        _check_reusable(out, layout, weight)
    shared = parsed.vector // parsed.panel
    values, structure = kernels.select_nm(weight, layout, out, shared)
    torch.autograd.graph.increment_version(values)
    return values, structure


def add_pruned_(out: Tensor, source: Tensor, alpha: float, structure: Structure) -> Tensor:
    """Add `alpha * source` to `out` in place, at the entries that a structure does not keep.

    With `out` the gradient, `source` the dense weight and `alpha` the rate, this is the decay of
    SR-STE: lambda (1 - mask) W is added to the gradient.

    Args:
        out: float32, float64 or bfloat16 `[rows, cols]`. Kept entries do not change in any bit.
        source: a tensor of the same shape and dtype; may be `out` itself.
        alpha: factor, in the dtype of `out` (float32 for bfloat16).
        structure: the kept entries, of any pattern.

    Returns:
        `out`. Its version counter is incremented; the sum is not differentiated.

    Raises:
        DTypeError: unsupported or different dtypes.
        ShapeError: a shape other than the structure's.
        ArgumentError: entries of `out` share memory.
        StructureError: a damaged structure.
        DeviceError: not on the CPU.

    Reference:
        Zhou et al. 2021, "Learning N:M fine-grained structured sparse neural networks from
        scratch", equation 8.

    Example:
        >>> weight = torch.tensor([[1.0, -3.0, 2.0, 0.5]])
        >>> _, structure = select_nm(weight, "2:4")
        >>> add_pruned_(torch.zeros(1, 4), weight, 0.5, structure)
        tensor([[0.5000, 0.0000, 0.0000, 0.2500]])
    """
    check(add_pruned_, locals())
    check_structure(structure)
    y, x = check_array(out, "out", rank=2), check_array(source, "source", rank=2)
    if any(size > 1 and step == 0 for size, step in zip(y.shape, y.stride(), strict=True)):
        raise ArgumentError(
            "add_pruned_ got an out whose entries share memory (an expanded tensor); each needs a "
            "place of its own: call .clone()"
        )
    same = (y.data_ptr(), y.shape, y.stride()) == (x.data_ptr(), x.shape, x.stride())
    if not same and y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
        # Shifted rows overlap: every sum must read the values from before the first write.
        x = x.clone()
    alpha = float(alpha)
    direct = _lies_row_by_row(y)
    target = y if direct else y.contiguous()
    x = target if same else _side_by_side(x)
    kernels.add_pruned(target, x, alpha, structure)
    if not direct:
        y.copy_(target)
    torch.autograd.graph.increment_version(out)
    return out


def mask_difference(a: Structure, b: Structure) -> int:
    """Count the entries in which two masks of one weight differ.

    Args:
        a: a structure of any pattern.
        b: a structure of the same sizes and vector, and of blocks of the same width.

    Returns:
        Number of entries that one mask keeps and the other does not; divided by rows * cols it is
        the flip rate.

    Raises:
        DTypeError: not a structure.
        ShapeError: sizes, vectors or block widths differ.
        StructureError: a damaged structure.

    Example:
        >>> _, a = select_nm(torch.tensor([[1.0, -3.0, 2.0, 0.0]]), "2:4")
        >>> _, b = select_nm(torch.tensor([[4.0, -3.0, 2.0, 0.0]]), "2:4")
        >>> mask_difference(a, b)
        2
    """
    return kernels.mask_difference(check_structure(a, "a"), check_structure(b, "b"))


def _side_by_side(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy if its rows are not contiguous."""
    whole = tensor.shape[1] <= 1 or tensor.stride(1) == 1
    return (tensor if whole else tensor.contiguous()).resolve_neg()


def _lies_row_by_row(tensor: Tensor) -> bool:
    rows, cols = tensor.shape
    apart = rows <= 1 or tensor.stride(0) >= cols
    return apart and (cols <= 1 or tensor.stride(1) == 1) and not tensor.is_neg()


def _check_reusable(out: object, layout: Layout, weight: Tensor) -> None:
    if not (isinstance(out, tuple) and len(out) == 2 and isinstance(out[0], Tensor)):
        raise DTypeError(
            f"out is a {type(out).__name__}; the pair that an earlier select_nm returned is needed"
        )
    values, structure = out
    found = check_structure(structure, "out[1]").layout
    if found != layout or structure.indptr is not None:
        raise ShapeError(
            f"out is of {found}; this selection is of {layout}: pass what select_nm returned for "
            "this shape and pattern"
        )
    if values.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr() and len(values):
        raise ArgumentError("out shares memory with the weight; pass memory of its own")
