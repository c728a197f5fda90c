"""Sparse codes: k active latents per row, as values and indices [batch, k]."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.backend.registry import module_of


def top_k(x: Tensor, k: int, index_dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    """Select the k largest entries of each row.

    Args:
        x: float32 or float64 [batch, n]; the entries of a row are contiguous.
        k: In [1, n].
        index_dtype: int64 or int32.

    Returns:
        Values and indices [batch, k], and the first row with a NaN, or -1.
    """
    shape = (x.shape[0], max(0, min(k, x.shape[1])))
    values, indices = x.new_empty(shape), x.new_empty(shape, dtype=index_dtype)
    return values, indices, module_of(x).codes.top_k(x, k, values, indices)


def decode(indices: Tensor, values: Tensor, dictionary: Tensor, bias: Tensor | None) -> Tensor:
    """Sum the latents of each row, plus the bias.

    Args:
        indices: int64 or int32 [batch, k].
        values: [batch, k], contiguous.
        dictionary: [latents, d], contiguous.
        bias: [d], contiguous, or None.

    Returns:
        [batch, d].
    """
    out = dictionary.new_empty(indices.shape[0], dictionary.shape[1])
    module_of(dictionary).codes.decode(indices, values, dictionary, bias, out)
    return out


def dots(indices: Tensor, dictionary: Tensor, grad_output: Tensor) -> Tensor:
    """Return the inner products of grad_output [batch, d] with the active latents: [batch, k]."""
    out = dictionary.new_empty(indices.shape)
    module_of(dictionary).codes.dots(indices, dictionary, grad_output, out)
    return out


def scatter(indices: Tensor, values: Tensor, grad_output: Tensor, latents: int) -> Tensor:
    """Add values[b, j] grad_output[b] to row indices[b, j] of a zero matrix [latents, d]."""
    out = grad_output.new_zeros(latents, grad_output.shape[1])
    module_of(grad_output).codes.scatter(indices, values, grad_output, out)
    return out


def prefix_errors(indices: Tensor, values: Tensor, dictionary: Tensor, residual: Tensor) -> Tensor:
    """Return the squared error after each term of a code.

    Args:
        indices: int64 or int32 [batch, k].
        values: [batch, k], contiguous.
        dictionary: [latents, d], contiguous.
        residual: [batch, d], contiguous; overwritten by what the whole code leaves.

    Returns:
        [batch, k].
    """
    errors = dictionary.new_empty(indices.shape)
    module_of(dictionary).codes.prefix_errors(indices, values, dictionary, residual, errors)
    return errors


def prefix_gradients(
    indices: Tensor, values: Tensor, dictionary: Tensor, weights: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the weighted prefix errors.

    Args:
        indices: int64 or int32 [batch, k].
        values: [batch, k], contiguous.
        dictionary: [latents, d], contiguous.
        weights: [batch, k], contiguous.
        residual: [batch, d], contiguous, from `prefix_errors`; overwritten by the gradients of
            the bias.

    Returns:
        Gradients of the values [batch, k] and of the dictionary [latents, d].
    """
    grad_values = torch.empty_like(weights)
    grad_dictionary = dictionary.new_zeros(dictionary.shape)
    module_of(dictionary).codes.prefix_gradients(
        indices, values, dictionary, weights, residual, grad_values, grad_dictionary
    )
    return grad_values, grad_dictionary


__all__ = ["decode", "dots", "prefix_errors", "prefix_gradients", "scatter", "top_k"]
