"""Convolutions by torch's own, with the weight made dense on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gossamer.backend.composite import checks


class _Window:
    """The numbers of a convolution of three dimensions, and padding that torch can take."""

    def __init__(self, geometry: Sequence[int]) -> None:
        self.kernel, self.stride, self.front, self.dilation = (
            tuple(geometry[i : i + 3]) for i in range(0, 12, 3)
        )
        self.groups = geometry[12]

    def padded(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Return images with zeros in front and behind, as an output of a size reads them."""
        pads: list[int] = []
        for i in (2, 1, 0):
            reach = (size[i] - 1) * self.stride[i] + self.dilation[i] * (self.kernel[i] - 1) + 1
            pads += [self.front[i], reach - self.front[i] - x.shape[2 + i]]
        return functional.pad(x, pads)

    def filters(self, dense: Tensor, channels: int) -> Tensor:
        """Return [out, taps * channels] as torch's filters."""
        return dense.view(len(dense), *self.kernel, channels).permute(0, 4, 1, 2, 3)

    def run(self, x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve padded images."""
        return functional.conv3d(x, filters, bias, self.stride, 0, self.dilation, self.groups)

    def gradients(
        self, g: Tensor, x: Tensor, filters: Tensor, wanted: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of padded images and of filters."""
        found = torch.ops.aten.convolution_backward(
            g,
            x,
            filters,
            None,
            self.stride,
            (0, 0, 0),
            self.dilation,
            False,
            (0, 0, 0),
            self.groups,
            (*wanted, False),
        )
        return found[0], found[1]


@torch.no_grad()
def convolve(
    x: Any,
    values: Any,
    layout: Any,
    indices: Any,
    indptr: Any,
    bias: Any,
    geometry: Sequence[int],
    y: Any,
    *_: Any,
) -> None:
    """Write the convolution of images to y."""
    w, window = checks.weight(layout, indices, indptr, values), _Window(geometry)
    x, y = _images(x, "x", w.values), _images(y, "y", w.values)
    filters = window.filters(w.dense(), x.shape[1] // window.groups)
    b = None if bias is None else checks.bias(bias, w.values, layout.rows)
    y.copy_(window.run(window.padded(x, y.shape[2:]), filters, b))


@torch.no_grad()
def convolve_input(
    grad_output: Any,
    values: Any,
    layout: Any,
    indices: Any,
    indptr: Any,
    t_layout: Any,
    t_indices: Any,
    t_indptr: Any,
    perm: Any,
    geometry: Sequence[int],
    grad_input: Any,
    *_: Any,
) -> None:
    """Write the gradient of the images to grad_input."""
    w, window = checks.weight(layout, indices, indptr, values), _Window(geometry)
    g, out = _images(grad_output, "grad_output", w.values), _images(grad_input, "grad_input")
    if t_layout is None:
        dense = w.dense()
    else:
        dense = checks.transposed(w, t_layout, t_indices, t_indptr, perm).dense().T
    wide = out.dtype  # windows are summed there
    filters = window.filters(dense.contiguous(), out.shape[1] // window.groups).to(wide)
    padded = window.padded(out.new_zeros(()).expand(out.shape), g.shape[2:])
    found = window.gradients(g.to(wide), padded, filters, (True, False))[0]
    for i in range(3):
        start = min(window.front[i], found.shape[2 + i])
        length = min(out.shape[2 + i], found.shape[2 + i] - start)
        found = found.narrow(2 + i, start, length)
    missing = [n for i in (2, 1, 0) for n in (0, out.shape[2 + i] - found.shape[2 + i])]
    out.copy_(functional.pad(found, missing))


@torch.no_grad()
def convolve_weight(
    grad_output: Any,
    x: Any,
    layout: Any,
    indices: Any,
    indptr: Any,
    geometry: Sequence[int],
    grad_values: Any,
    *_: Any,
) -> None:
    """Write the gradient of the weight at the kept entries to grad_values."""
    w = checks.weight(layout, indices, indptr, grad_values, "grad_values")
    window, x = _Window(geometry), _images(x, "x", w.values)
    g = _images(grad_output, "grad_output", w.values)
    filters = w.values.new_zeros(layout.rows, x.shape[1] // window.groups, *window.kernel)
    found = window.gradients(g, window.padded(x, g.shape[2:]), filters, (False, True))[1]
    dense = found.permute(0, 2, 3, 4, 1).reshape(-1)
    torch.index_select(dense, 0, w.at(), out=w.values)


def _images(x: Any, who: str, like: Tensor | None = None) -> Tensor:
    """Return images [images, channels, depth, height, width], of one or two dimensions too."""
    t: Tensor = checks.tensor(x, who) if like is None else checks.alike(x, who, like)
    while t.dim() < 5:
        t = t.unsqueeze(2)
    return t


__all__ = ["convolve", "convolve_input", "convolve_weight"]
