"""The compiled kernels of sparse codes on torch CPU tensors, without autograd.

A code consists of two tensors [batch, k]: the values and the indices of their latents. A dictionary
is [latents, d]: each latent is a contiguous row. Every call checks every index.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gossamer.backend import check_array
from gossamer.backend import codes as kernels
from gossamer.errors import ArgumentError, DTypeError, ShapeError, StructureError
from gossamer.patterns import as_integer


class Code(NamedTuple):
    """The active latents of a batch.

    Attributes:
        values: float [batch, k], in descending order if `top_k` made the code.
        indices: int64 or int32 [batch, k].
    """

    values: Tensor
    indices: Tensor


def check_code(code: object, latents: int | None = None) -> None:
    """Raise unless a code consists of two matrices of one shape, with indices of latents.

    Args:
        code: the argument.
        latents: number of latents that the indices may name; None leaves them unchecked, for a
            kernel that checks them itself.

    Raises:
        DTypeError: not a `Code` of a floating and an integer tensor.
        ShapeError: the shapes differ, or are not matrices.
        StructureError: an index is outside the latents.
    """
    if not isinstance(code, Code):
        raise DTypeError(
            f"code is {type(code).__name__}; a Code of two tensors is needed: pass "
            "Code(values, indices)"
        )
    _matrix(code.values, "values of the code")
    check_array(code.indices, "indices of the code", rank=2, dtypes=(torch.int64, torch.int32))
    if code.values.shape != code.indices.shape:
        raise ShapeError(
            f"the code has values {list(code.values.shape)} and indices "
            f"{list(code.indices.shape)}; one shape [batch, k] is needed"
        )
    if latents is not None and code.indices.numel():
        least, most = code.indices.aminmax()
        if not 0 <= int(least) <= int(most) < latents:
            raise StructureError(
                f"the code has indices from {int(least)} to {int(most)}; the latents are 0 to "
                f"{latents - 1}: pass the code of this dictionary"
            )


def top_k(x: Tensor, k: int, index_dtype: torch.dtype = torch.int64) -> Code:
    """Return the k largest entries of each row.

    One pass over the row builds a tournament of maxima, which leaves about k entries to sort.

    Args:
        x: float32 or float64 [batch, entries]; copied when its rows are not contiguous.
        k: number of entries per row, in [1, entries].
        index_dtype: int64 or int32.

    Returns:
        Values and indices, both [batch, k], in descending order; equal values by ascending index.

    Raises:
        ShapeError: x is empty or not a matrix.
        ArgumentError: k is outside [1, entries], or x holds a NaN, which has no place in an order.
        DTypeError: x is not float32 or float64, or k is not an integer.

    Example:
        >>> top_k(torch.tensor([[1.0, 3.0, 2.0, 3.0]]), 3).indices
        tensor([[1, 3, 2]])
    """
    x = _matrix(x, "x")
    if x.shape[1] > 1 and x.stride(1) != 1:
        x = x.contiguous()
    if index_dtype not in (torch.int64, torch.int32):
        raise DTypeError(f"top_k got index_dtype={index_dtype}; choose torch.int64 or torch.int32")
    k = max(-1, min(as_integer(k, "top_k got k"), 2**62))
    values, indices, row = kernels.top_k(x, k, index_dtype)
    if row >= 0:
        raise ArgumentError(
            f"top_k found a NaN in row {row} of x; NaN has no place in an order: "
            "find where it comes from (torch.autograd.set_detect_anomaly)"
        )
    return Code(values, indices)


def decode(code: Code, dictionary: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return sum_j values[b, j] dictionary[indices[b, j]] + bias.

    Args:
        code: [batch, k].
        dictionary: float32 or float64 [latents, d].
        bias: [d], or None.

    Returns:
        [batch, d].

    Raises:
        StructureError: an index is outside the dictionary.
        ShapeError: the sizes do not fit.
        DTypeError: the dtypes differ, or are not supported.
    """
    check_code(code)
    dictionary = _matrix(dictionary, "dictionary").contiguous()
    bias = None if bias is None else check_array(bias, "bias").contiguous()
    return kernels.decode(code.indices, _values(code), dictionary, bias)


def dots(indices: Tensor, dictionary: Tensor, grad_output: Tensor) -> Tensor:
    """Return the inner products <grad_output[b], dictionary[indices[b, j]]>.

    Args:
        indices: int64 or int32 [batch, k].
        dictionary: [latents, d].
        grad_output: [batch, d].

    Returns:
        [batch, k], in the dictionary's dtype.
    """
    _matrix(indices, "indices")
    dictionary = _matrix(dictionary, "dictionary").contiguous()
    return kernels.dots(indices, dictionary, _matrix(grad_output, "grad_output").contiguous())


def scatter(code: Code, grad_output: Tensor, latents: int) -> Tensor:
    """Return the matrix that collects values[b, j] grad_output[b] in its row indices[b, j].

    Args:
        code: [batch, k].
        grad_output: [batch, d].
        latents: number of rows of the result.

    Returns:
        [latents, d]; rows without an index are zero.
    """
    check_code(code)
    latents = as_integer(latents, "scatter got latents")
    if not 0 <= latents < 2**31:
        raise ArgumentError(
            f"scatter got latents={latents}; at least 0 and below 2**31 are needed: pass the "
            "number of rows of the dictionary"
        )
    grad_output = _matrix(grad_output, "grad_output").contiguous()
    return kernels.scatter(code.indices, _values(code), grad_output, latents)


def scatter_touched(code: Code, grad_output: Tensor) -> tuple[Tensor, Tensor]:
    """Return only those rows of `scatter` that have an index.

    Args:
        code: [batch, k] with int64 indices.
        grad_output: [batch, d].

    Returns:
        The latents, int64 [touched] in ascending order, and their rows [touched, d].
    """
    check_code(code)
    touched, inverse = torch.unique(code.indices, return_inverse=True)
    return touched, scatter(Code(code.values, inverse), grad_output, len(touched))


def prefix_errors(
    x: Tensor, code: Code, dictionary: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the squared error of every prefix of a code.

    errors[b, j] = ||x[b] - bias - sum_{i <= j} values[b, i] dictionary[indices[b, i]]||^2. The
    residual is updated latent by latent, at a cost of O(k d) per row.

    Args:
        x: [batch, d].
        code: [batch, k].
        dictionary: [latents, d].
        bias: [d], or None.

    Returns:
        Errors [batch, k], and the residual [batch, d] of the whole code.
    """
    check_code(code)
    dictionary = _matrix(dictionary, "dictionary").contiguous()
    x = _matrix(x, "x")
    if bias is not None and check_array(bias, "bias").shape != x.shape[1:]:
        raise ShapeError(f"bias has shape {list(bias.shape)}; {list(x.shape[1:])} is needed")
    residual = (x.clone() if bias is None else x - bias.detach()).contiguous()
    return kernels.prefix_errors(code.indices, _values(code), dictionary, residual), residual


def prefix_gradients(
    weights: Tensor, residual: Tensor, code: Code, dictionary: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of sum_bj weights[b, j] errors[b, j], by suffix sums of the residuals.

    Args:
        weights: [batch, k].
        residual: [batch, d], as `prefix_errors` returns it.
        code: [batch, k].
        dictionary: [latents, d].

    Returns:
        Gradients of the values [batch, k], of the dictionary [latents, d], and of the bias per row
        [batch, d]; the gradient of x is minus the last.
    """
    check_code(code)
    residual = _matrix(residual, "residual")
    dictionary = _matrix(dictionary, "dictionary").contiguous()
    weights = _matrix(weights, "weights").contiguous()
    grad_bias = residual.clone()
    grad_values, grad_dictionary = kernels.prefix_gradients(
        code.indices, _values(code), dictionary, weights, grad_bias
    )
    return grad_values, grad_dictionary, grad_bias


def _values(code: Code) -> Tensor:
    values: Tensor = check_array(code.values, "values")
    return values.contiguous()


def _matrix(x: Tensor, name: str) -> Tensor:
    return check_array(x, name, rank=2)  # type: ignore[no-any-return]
