"""N:M selection of a dense weight at every step, compiled: values and structure in one pass.

A recipe that trains a dense weight and uses its N largest of every M entries selects anew before
each product. `select_nm` reads the weight once and writes what the kernels stream; nothing dense
is made in between.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.backend import Layout, Structure, check_array
from gossamer.backend import masks as kernels
from gossamer.backend.structure import check_structure
from gossamer.errors import DTypeError, PatternError, ShapeError
from gossamer.patterns import NM, parse_pattern

__all__ = ["add_pruned_", "mask_difference", "select_nm"]


def select_nm(
    weight: Tensor, pattern: str | NM, out: tuple[Tensor, Structure] | None = None
) -> tuple[Tensor, Structure]:
    """The entries of largest magnitude of every group, packed.

    Values and structure are those of `magnitude_mask`, `backend.encode` and `backend.gather`, bit
    for bit. A NaN counts as larger than any number, so that it is seen and not pruned away.

    Args:
        weight: float32, float64 or bfloat16 `[rows, cols]`. Copied where the entries of a row do
            not lie side by side. Its graph is not followed.
        pattern: An N:M pattern or its text. With V > 1 a column of a panel of V rows counts the
            sum of its magnitudes, in float64.
        out: What an earlier call returned for a weight of this shape, dtype and pattern. It is
            overwritten: at every step of a training this saves new memory, which costs more than
            the selection.

    Returns:
        Values [nnz] of the weight's dtype and their structure; of equal magnitudes the lower
        column is kept.

    Raises:
        DTypeError: Not a tensor of those dtypes, or `out` is not such a pair.
        ShapeError: Not of rank 2, or `out` is of another weight or pattern, or is the weight.
        PatternError: Not an N:M pattern, or the shape does not fit it.
        DeviceError: Not on the CPU.

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
    layout = Layout(rows, cols, parsed.vector, wide, parsed.n, parsed.m)
    if out is not None:
        _check_reusable(out, layout, weight)
    values, structure = kernels.select_nm(weight, layout, out)
    torch.autograd.graph.increment_version(values)
    return values, structure


def add_pruned_(out: Tensor, source: Tensor, alpha: float, structure: Structure) -> Tensor:
    """``out += alpha * source`` at the entries that a structure does not keep, in place.

    With `out` the gradient, `source` the dense weight and `alpha` its rate this is the decay of
    SR-STE: lambda (1 - mask) W is added to the gradient.

    Args:
        out: float32, float64 or bfloat16 `[rows, cols]`. Entries that are kept do not change, not
            even in the sign of a zero.
        source: Of the same shape and dtype; may be `out` itself.
        alpha: Taken in the dtype of `out`, in float32 for bfloat16.
        structure: What is kept, of any pattern.

    Returns:
        `out`. Autograd is told that it changed; the sum itself is not differentiated.

    Raises:
        DTypeError: Other dtypes, or dtypes that differ.
        ShapeError: A shape that is not the structure's, or entries of `out` that share memory.
        StructureError: A damaged structure.
        DeviceError: Not on the CPU.

    Reference:
        Zhou et al. 2021, "Learning N:M fine-grained structured sparse neural networks from
        scratch", equation 8.

    >>> weight = torch.tensor([[1.0, -3.0, 2.0, 0.5]])
    >>> _, structure = select_nm(weight, "2:4")
    >>> add_pruned_(torch.zeros(1, 4), weight, 0.5, structure)
    tensor([[0.5000, 0.0000, 0.0000, 0.2500]])
    """
    check_structure(structure)
    y, x = check_array(out, "out", rank=2), check_array(source, "source", rank=2)
    if any(size > 1 and step == 0 for size, step in zip(y.shape, y.stride(), strict=True)):
        raise ShapeError(
            "add_pruned_ got an out whose entries share memory (an expanded tensor); each needs a "
            "place of its own: call .clone()"
        )
    same = (y.data_ptr(), y.shape, y.stride()) == (x.data_ptr(), x.shape, x.stride())
    if not same and y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
        # Rows that overlap shifted: each sum reads what stood there before the first was written.
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
    """In how many entries two masks of one weight differ: the sum of absolute differences.

    Args:
        a: A structure of any pattern.
        b: A structure of the same sizes and vector, and of blocks of the same width.

    Returns:
        Entries kept by one of them and not by the other; divided by rows * cols it is the flip
        rate.

    Raises:
        DTypeError: Not a structure.
        ShapeError: Sizes, vectors or widths of blocks that differ.
        StructureError: A damaged structure.

    >>> _, a = select_nm(torch.tensor([[1.0, -3.0, 2.0, 0.0]]), "2:4")
    >>> _, b = select_nm(torch.tensor([[4.0, -3.0, 2.0, 0.0]]), "2:4")
    >>> mask_difference(a, b)
    2
    """
    return kernels.mask_difference(check_structure(a, "a"), check_structure(b, "b"))


def _side_by_side(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it, whose rows each lie in one piece."""
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
        raise ShapeError("out shares its memory with the weight; it needs memory of its own")
