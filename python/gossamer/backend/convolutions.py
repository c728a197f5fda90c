"""Convolutions with a sparse weight, without autograd: allocate the output and run the kernel.

A weight is the matrix [out, taps * channels] whose columns are ordered (kd, kh, kw, channel): the
products read the images through a table of patches, so no im2col is written. Images are torch
tensors [images, channels, *size] of one to three dimensions, any strides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from gossamer.backend.registry import module_of
from gossamer.backend.structure import Structure, Transposed, check_structure
from gossamer.errors import ShapeError


class Window(NamedTuple):
    """How a convolution moves over an image: one number per dimension, outermost first.

    Args:
        kernel: taps.
        stride: pixels from a window to the next.
        front: zeros in front of the first pixel.
        behind: zeros behind the last pixel.
        dilation: pixels from a tap to the next.
        groups: groups of channels, each with its own rows of the weight.

    Example:
        >>> Window((3, 3), (2, 2), (1, 1), (1, 1), (1, 1)).output_size((8, 7))
        (4, 4)
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    front: tuple[int, ...]
    behind: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the size of the output for images of a size.

        Raises:
            ShapeError: the window is larger than the padded image.
        """
        room = [
            n + f + b - d * (k - 1) - 1
            for n, f, b, d, k in zip(
                size, self.front, self.behind, self.dilation, self.kernel, strict=True
            )
        ]
        if any(free < 0 for free in room):
            raise ShapeError(
                f"images of size {tuple(size)} with padding {self.front} and {self.behind} are "
                f"smaller than a window of {self.kernel} taps with dilation {self.dilation}: "
                "give larger images or more padding"
            )
        return tuple(free // s + 1 for free, s in zip(room, self.stride, strict=True))

    def as_ints(self) -> list[int]:
        """Return all numbers in order; `of_ints` reads them."""
        return [*self.kernel, *self.stride, *self.front, *self.behind, *self.dilation, self.groups]

    @classmethod
    def of_ints(cls, ints: Sequence[int]) -> Window:
        """Return the window of `as_ints`."""
        dims = (len(ints) - 1) // 5
        kernel, stride, front, behind, dilation = (
            tuple(ints[i * dims : (i + 1) * dims]) for i in range(5)
        )
        return cls(kernel, stride, front, behind, dilation, ints[-1])

    def geometry(self) -> list[int]:
        """Return the numbers as the compiled module takes them: three dimensions of each."""
        return _geometry(self)


@lru_cache(maxsize=1024)
def _geometry(window: Window) -> list[int]:
    missing = 3 - len(window.kernel)
    parts = ((window.kernel, 1), (window.stride, 1), (window.front, 0), (window.dilation, 1))
    return [n for part, fill in parts for n in (*[fill] * missing, *part)] + [window.groups]


def convolve(
    x: Tensor,
    values: Tensor,
    structure: Structure,
    window: Window,
    bias: Tensor | None = None,
) -> Tensor:
    """Compute the convolution of images with a sparse weight.

    Args:
        x: [images, channels, *size]; float32, float64 or bfloat16 (summed in float32).
        values: [nnz], contiguous, dtype of x.
        structure: structure of the weight [out, taps * channels / groups].
        window: how the taps lie.
        bias: [out], dtype of x, or None.

    Returns:
        [images, out, *output size], in the memory format of x.

    Raises:
        ShapeError, DTypeError, DeviceError, StructureError: An argument does not fit; the message
            names it and what is needed.
    """
    layout, indices, indptr = check_structure(structure)
    size = window.output_size(x.shape[2:])
    y = new_images(x, (x.shape[0], layout.rows, *size))
    module_of(x).products.convolve(x, values, layout, indices, indptr, bias, window.geometry(), y)
    return y


def convolve_input(
    grad_output: Tensor,
    values: Tensor,
    structure: Structure,
    window: Window,
    size: Sequence[int],
    transposed: Transposed | None = None,
) -> Tensor:
    """Compute the gradient of the images.

    Args:
        grad_output: [images, out, *output size].
        values: [nnz] of the weight, contiguous, dtype of grad_output.
        structure: structure of the weight.
        window: how the taps lie.
        size: size of the images.
        transposed: `gossamer.backend.transpose` of the structure: the product then gathers with
            it, which is faster. It is not used with groups.

    Returns:
        [images, channels, *size], in the memory format of grad_output.

    Raises:
        ShapeError, DTypeError, DeviceError, StructureError: As `convolve`.
    """
    layout, indices, indptr = check_structure(structure)
    # Windows overlap, so their gradients are summed where the images lie.
    sums = torch.float64 if grad_output.dtype == torch.float64 else torch.float32
    grad = new_images(
        grad_output, (grad_output.shape[0], channels(layout.cols, window), *size), sums
    )
    turned = (None, None, None, None)
    if transposed is not None and window.groups == 1:
        turned = (*check_structure(transposed.structure), transposed.perm)  # type: ignore[assignment]
    module_of(grad_output).products.convolve_input(
        grad_output, values, layout, indices, indptr, *turned, window.geometry(), grad
    )
    return grad.to(grad_output.dtype)


def convolve_weight(grad_output: Tensor, x: Tensor, structure: Structure, window: Window) -> Tensor:
    """Compute the gradient of the weight at the kept entries only.

    Args:
        grad_output: [images, out, *output size].
        x: [images, channels, *size], dtype of grad_output.
        structure: structure of the weight.
        window: how the taps lie.

    Returns:
        [nnz], in the order of the values.

    Raises:
        ShapeError, DTypeError, DeviceError, StructureError: As `convolve`.
    """
    layout, indices, indptr = check_structure(structure)
    grad = x.new_empty(structure.nnz)
    module_of(x).products.convolve_weight(
        grad_output, x, layout, indices, indptr, window.geometry(), grad
    )
    return grad


def new_images(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Return uninitialised images in the memory format of others."""
    return torch.empty(
        tuple(shape),
        dtype=like.dtype if dtype is None else dtype,
        device=like.device,
        memory_format=_format(like),
    )


def _format(x: Tensor) -> torch.memory_format:
    if not x.is_contiguous():
        last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
        if last is not None and x.is_contiguous(memory_format=last):
            return last
    return torch.contiguous_format


def channels(cols: int, window: Window) -> int:
    """Return the channels of the images that a weight of so many columns takes."""
    return cols // math.prod(window.kernel) * window.groups


__all__ = ["Window", "channels", "convolve", "convolve_input", "convolve_weight", "new_images"]
