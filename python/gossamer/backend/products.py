"""spmm, spmm_t and sddmm on matrices, without autograd: allocate the output and run the kernel.

The compiled module checks every size, dtype and pointer before a kernel runs.
"""

from __future__ import annotations

from gossamer.backend.arrays import Array, empty, rows_of
from gossamer.backend.registry import module_of
from gossamer.backend.structure import Structure, Transposed, check_structure
from gossamer.errors import DTypeError


def spmm(
    x: Array,
    values: Array,
    structure: Structure,
    bias: Array | None = None,
    out: Array | None = None,
) -> Array:
    """Compute `Y = X W^T + bias`.

    Args:
        x: [batch, cols], any strides; float32, float64 or bfloat16 (summed in float32).
        values: [nnz], contiguous, dtype of x.
        structure: Structure of W.
        bias: [rows], dtype of x, or None.
        out: [batch, rows] to write, of the dtype and device of x; None makes a new one.

    Returns:
        [batch, rows], of the dtype, device and library of x.

    Raises:
        ShapeError, DTypeError, DeviceError, StructureError: An argument does not fit; the message
            names it and what is needed.
    """
    # --8<-- [start:function]
    layout, indices, indptr = check_structure(structure)
    y = empty((rows_of(x), layout.rows), x) if out is None else out
    module_of(x).products.spmm(x, values, layout, indices, indptr, bias, y)
    return y
    # --8<-- [end:function]


def spmm_t(
    grad_output: Array,
    values: Array,
    structure: Structure,
    transposed: Transposed | None = None,
    out: Array | None = None,
) -> Array:
    """Compute `dX = dY W`.

    Args:
        grad_output: [batch, rows], any strides.
        values: [nnz] of W, contiguous, dtype of grad_output.
        structure: Structure of W.
        transposed: `gossamer.backend.transpose` of the structure: the product then gathers with
            it, which is faster. None scatters from the structure itself. Entries that it lacks are
            left out of the product.
        out: [batch, cols] to write, of the dtype and device of grad_output; None makes a new one.

    Returns:
        [batch, cols], of the dtype, device and library of grad_output.

    Raises:
        ShapeError, DTypeError, DeviceError, StructureError: As `spmm`.
    """
    layout, indices, indptr = check_structure(structure)
    grad_input = empty((rows_of(grad_output), layout.cols), grad_output) if out is None else out
    core = module_of(grad_output).products
    if transposed is None:
        core.spmm_t(grad_output, values, layout, indices, indptr, grad_input)
    else:
        if type(transposed) is not Transposed:
            raise DTypeError(
                f"transposed is a {type(transposed).__name__}; a gossamer.backend.Transposed is "
                "needed: build it with gossamer.backend.transpose"
            )
        turned, perm = check_structure(transposed.structure), transposed.perm
        core.spmm_t_packed(grad_output, values, layout, indices, indptr, *turned, perm, grad_input)
    return grad_input


def sddmm(grad_output: Array, x: Array, structure: Structure) -> Array:
    """Compute `dW = dY^T X` at the kept entries only.

    Args:
        grad_output: [batch, rows], any strides.
        x: [batch, cols], any strides, dtype of grad_output.
        structure: Structure of W.

    Returns:
        [nnz], in the order of the values, of the dtype, device and library of x.

    Raises:
        ShapeError, DTypeError, DeviceError, StructureError: As `spmm`.
    """
    layout, indices, indptr = check_structure(structure)
    grad_values = empty((structure.nnz,), x)
    module_of(x).products.sddmm(grad_output, x, layout, indices, indptr, grad_values)
    return grad_values


__all__ = ["sddmm", "spmm", "spmm_t"]
