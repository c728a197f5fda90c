"""How the taps of a convolution lie, by the arguments that torch's convolutions take."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.backend.convolutions import Window
from gossamer.errors import ShapeError
from gossamer.nn.layers.filters import matrix_of
from gossamer.patterns import as_integer

Sizes = int | tuple[int, ...] | list[int]
_MODES = ("zeros", "reflect", "replicate", "circular")


class Windowed:
    """What has the arguments of a convolution as attributes, under the names of torch.

    Attributes:
        dims: dimensions of an image.
        window: how the taps lie on an image, or on a padded one unless the padding is zeros.
    """

    dims: ClassVar[int]

    def set_window(
        self,
        kernel_size: Sizes,
        stride: Sizes,
        padding: Sizes | str,
        dilation: Sizes,
        groups: int,
        padding_mode: str,
    ) -> None:
        """Check the arguments and hold them.

        Raises:
            ShapeError: one of them is no argument of a convolution.
        """
        who = f"{type(self).__name__} got"
        sizes = partial(read_sizes, self.dims, who)
        self.kernel_size = sizes("kernel_size", kernel_size, 1)
        self.stride = sizes("stride", stride, 1)
        self.dilation = sizes("dilation", dilation, 1)
        self.groups = as_integer(groups, f"{who} groups")
        self.padding_mode = padding_mode
        if self.groups < 1:
            raise ShapeError(f"{who} groups={groups}; at least 1 is needed")
        if padding_mode not in _MODES:
            raise ShapeError(f"{who} padding_mode={padding_mode!r}; choose one of {_MODES}")
        self.padding: tuple[int, ...] | str
        if isinstance(padding, str):
            self.padding = padding
            self._front, self._behind = named_padding(
                padding, self.kernel_size, self.stride, self.dilation, who
            )
        else:
            self.padding = self._front = self._behind = sizes("padding", padding, 0)

    @property
    def window(self) -> Window:
        """How the taps lie on an image, or on a padded one unless the padding is zeros."""
        inside = self.padding_mode == "zeros"
        none = (0,) * self.dims
        front, behind = (self._front, self._behind) if inside else (none, none)
        return Window(self.kernel_size, self.stride, front, behind, self.dilation, self.groups)

    def padded(self, x: Tensor, always: bool = False) -> Tensor:
        """Return images with their padding, which is left to the kernel where it is zeros."""
        if self.padding_mode == "zeros" and not always:
            return x
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        # What torch allows: a reflection has no border pixel, a circle goes around once.
        less = {"reflect": 1, "circular": 0}.get(mode)
        for n, f, b in zip(x.shape[2:], self._front, self._behind, strict=True):
            if (less is not None and max(f, b) > n - less) or (mode != "constant" and n == 0):
                raise ShapeError(
                    f"images of size {tuple(x.shape[2:])} are too small for padding {self._front} "
                    f"and {self._behind} with padding_mode={mode!r}: give larger images, or "
                    "padding_mode='zeros'"
                )
        pairs = zip(self._front[::-1], self._behind[::-1], strict=True)
        return F.pad(x, [n for pair in pairs for n in pair], mode)

    def gradient_rows(self, x: Tensor, grad_output: Tensor, begin: int, end: int) -> Tensor:
        """Return rows [begin, end) of the gradient of the matrix, for an input of the layer."""
        if x.dim() == self.dims + 1:
            x, grad_output = x.unsqueeze(0), grad_output.unsqueeze(0)
        x = self.padded(x, always=True)
        channels = x.shape[1] // self.groups
        if self.groups == 1:
            return matrix_of(self._filter_gradient(grad_output[:, begin:end], x, channels))
        return matrix_of(self._filter_gradient(grad_output, x, channels))[begin:end]

    def _filter_gradient(self, grad_output: Tensor, x: Tensor, channels: int) -> Tensor:
        """Return the gradient of all filters [out, channels, *kernel] for padded images x."""
        weight = x.new_empty(grad_output.shape[1], channels, *self.kernel_size)
        none = [0] * self.dims
        _, grad, _ = torch.ops.aten.convolution_backward(
            grad_output, x, weight, None, self.stride, none, self.dilation, False, none,
            self.groups, [False, True, False],
        )  # fmt: skip
        return grad  # type: ignore[no-any-return]


def read_sizes(dims: int, who: str, name: str, given: Sizes, least: int) -> tuple[int, ...]:
    """Return one number per dimension.

    Args:
        dims: dimensions.
        who: the beginning of an error.
        name: of the argument.
        given: one number, or one per dimension.
        least: the smallest that is allowed.

    Raises:
        ShapeError: another number of numbers, or one is too small.

    Example:
        >>> read_sizes(2, "got", "stride", 3, 1)
        (3, 3)
    """
    several = tuple(given) if isinstance(given, tuple | list) else (given,)
    sizes = tuple(as_integer(n, f"{who} {name}") for n in several)
    if len(sizes) == 1:
        sizes *= dims
    if len(sizes) != dims or min(sizes) < least:
        raise ShapeError(
            f"{who} {name}={given}; one number or {dims} are needed, each at least {least}"
        )
    return sizes


def named_padding(
    padding: str,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    who: str,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the padding in front and behind that "same" or "valid" stands for.

    Raises:
        ShapeError: another name, or "same" with a stride.

    Example:
        >>> named_padding("same", (4,), (1,), (1,), "got")
        ((1,), (2,))
    """
    if padding not in ("same", "valid"):
        raise ShapeError(f"{who} padding={padding!r}; choose 'same', 'valid' or numbers")
    if padding == "valid":
        return (0,) * len(kernel), (0,) * len(kernel)
    if any(step != 1 for step in stride):
        raise ShapeError(
            f"{who} padding='same' and stride={stride}; 'same' needs stride 1: give the padding as "
            "numbers"
        )
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return tuple(n // 2 for n in total), tuple(n - n // 2 for n in total)


__all__ = ["Sizes", "Windowed", "named_padding", "read_sizes"]
