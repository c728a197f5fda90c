"""Convolutions to test, and their oracle: torch's convolution of the masked weight in float64."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.backend import Structure, coordinates, encode
from gossamer.backend.convolutions import Window
from gossamer.nn.layers.convolution import filters_of


class Case(NamedTuple):
    """Sizes of a convolution: numbers per dimension as torch takes them."""

    channels: int
    out: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    images: int = 3

    @property
    def window(self) -> Window:
        return Window(
            self.kernel, self.stride, self.padding, self.padding, self.dilation, self.groups
        )

    @property
    def cols(self) -> int:
        taps = 1
        for k in self.kernel:
            taps *= k
        return taps * self.channels // self.groups


# Odd sizes, tiles that end inside rows and images, blocks of columns that end inside a tap.
CASES = (
    Case(8, 16, (7, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
    Case(40, 8, (9, 11), (3, 3), (1, 1), (1, 1), (1, 1)),
    Case(8, 16, (14, 14), (3, 3), (2, 2), (1, 1), (1, 1)),
    Case(8, 8, (13, 10), (3, 2), (3, 2), (2, 0), (1, 1)),
    Case(8, 8, (12, 15), (3, 3), (1, 2), (2, 3), (2, 3)),
    Case(16, 8, (10, 10), (1, 1), (1, 1), (0, 0), (1, 1)),
    Case(16, 8, (9, 9), (1, 1), (2, 2), (0, 0), (1, 1)),
    Case(16, 8, (5, 5), (1, 1), (1, 1), (2, 1), (1, 1)),
    Case(8, 16, (8, 9), (3, 3), (1, 1), (1, 1), (1, 1), groups=2),
    Case(16, 32, (6, 6), (3, 3), (2, 2), (1, 1), (1, 1), groups=4),
    Case(160, 16, (5, 6), (2, 2), (1, 1), (1, 1), (1, 1), groups=2),
    Case(8, 8, (2, 2), (5, 5), (1, 1), (4, 4), (1, 1)),
    Case(8, 16, (40,), (5,), (1,), (2,), (1,)),
    Case(8, 16, (33,), (4,), (3,), (5,), (2,), groups=2),
    Case(8, 8, (5, 6, 7), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    Case(8, 8, (6, 5, 9), (2, 3, 1), (2, 1, 3), (0, 2, 1), (1, 2, 1)),
    Case(8, 8, (300, 3), (3, 3), (1, 1), (1, 1), (1, 1), images=1),
    Case(8, 8, (1, 3), (1, 3), (1, 1), (0, 1), (1, 1), images=300),
)


def structure_of(case: Case, vector: int, keep: float, m: int = 0, n: int = 0) -> Structure:
    """Return a random structure of panels, of n of m columns if m is not 0."""
    panels = case.out // vector
    if m:
        order = torch.rand(panels, case.cols // m, m).argsort(-1)
        mask = (order < n).view(panels, case.cols)
    else:
        mask = torch.rand(panels, case.cols) < keep
    return encode(mask.repeat_interleave(vector, 0).contiguous(), vector, n, m)


def dense_of(values: Tensor, structure: Structure, case: Case) -> Tensor:
    """Return the weight as torch stores it, differentiable in the values."""
    at = coordinates(structure)
    at = at if isinstance(at, Tensor) else torch.from_numpy(at)
    flat = values.new_zeros(case.out * case.cols).index_copy(0, at, values)
    return filters_of(flat.view(case.out, case.cols), case.kernel)


def dense_convolution(x: Tensor, weight: Tensor, case: Case, bias: Tensor | None = None) -> Tensor:
    """The oracle's forward product."""
    functions: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
    y: Tensor = functions[len(case.kernel)](
        x, weight, bias, case.stride, case.padding, case.dilation, case.groups
    )
    return y


def laid_out(x: Tensor, how: str) -> Tensor:
    """Return equal images with other strides."""
    if how == "channels_last" and x.dim() > 3:
        last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        return x.contiguous(memory_format=last)
    if how == "spaced":
        wide = x.new_empty((*x.shape[:-1], 2 * x.shape[-1]))
        wide[..., ::2] = x
        return wide[..., ::2]
    if how == "turned":
        return x.flip(0).transpose(-1, -2).contiguous().transpose(-1, -2).flip(0)
    return x
