"""How a matrix acts on the input of a layer: on rows, as a linear layer, or as a convolution.

A layer with a dense weight under a mask (`gossamer.nn.layers.masked`) is the same for both: its
weight is a matrix [out, in] whose kept entries multiply. What differs stands here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.arguments import shown
from gossamer.backend import Structure, Transposed
from gossamer.backend.convolutions import Window, new_images
from gossamer.errors import DTypeError, PatternError, ShapeError
from gossamer.nn.layers.base import linear_of_parts
from gossamer.nn.layers.convolution import KINDS, kind_of
from gossamer.nn.layers.filters import SHAPE, check_filters, filters_of, matrix_of, options_of
from gossamer.nn.layers.linear import SparseLinear, linear_weight
from gossamer.nn.layers.sparse import SparseLayer, matrix_gradient
from gossamer.nn.layers.windows import Windowed
from gossamer.ops import autograd
from gossamer.ops import convolution_autograd as convolutions
from gossamer.ops.autocast import is_autocast
from gossamer.patterns import Pattern
from gossamer.weight import SparseWeight


class RowProduct:
    """Y = X W^T + b of rows: x [..., cols], y [..., rows]."""

    takes_rows = True
    ints: ClassVar[list[int]] = []
    """What `output_like` takes in place of the product."""

    def check_pattern(self, pattern: Pattern, rows: int, cols: int, who: str) -> None:
        """Raise PatternError unless a matrix [rows, cols] fits a pattern."""
        pattern.check_shape(rows, cols, who)

    def check_fits(self, x: Tensor, weight: Tensor) -> None:
        """Raise ShapeError unless x is an input; DTypeError for another dtype than the weight's."""
        if not isinstance(x, Tensor) or x.layout is not torch.strided:
            raise DTypeError(f"x is {shown(x)}; a dense torch tensor is needed")
        if x.dtype != weight.dtype and not is_autocast(x):
            raise DTypeError(
                f"x is {x.dtype}, the layer's weight {weight.dtype}; one dtype is needed: convert "
                "x with .to()"
            )
        self.check_size(x, weight.shape[1])

    def check_size(self, x: Tensor, cols: int) -> None:
        """Raise ShapeError unless x is an input of a matrix of so many columns."""
        if x.shape[-1:] != (cols,):
            raise ShapeError(
                f"x has shape {tuple(x.shape)}; its last size must be {cols}, the layer's "
                "in_features"
            )

    def enter(self, x: Tensor) -> Tensor:
        """Return the input as the other methods take it."""
        return x

    def leave(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the output for the input x that came."""
        return y

    def flat(self, x: Tensor) -> Tensor:
        """Return an input or a gradient as `gradient` and `kept_gradient` take it."""
        return autograd.flatten(x)

    def multiply(
        self, x: Tensor, values: Tensor, structure: Structure, bias: Tensor | None
    ) -> Tensor:
        """Return Y by the kept entries, without autograd."""
        return autograd.run_spmm(x, values, structure, bias)

    def input_gradient(
        self,
        grad_output: Tensor,
        values: Tensor,
        structure: Structure,
        transposed: Transposed | None,
        size: Sequence[int],
    ) -> Tensor:
        """Return dX, for an input of a size, by the kept entries."""
        return autograd.run_spmm_t(grad_output, values, structure, transposed)

    def kept_gradient(self, grad_output: Tensor, x: Tensor, structure: Structure) -> Tensor:
        """Return dW at the kept entries [nnz]."""
        return autograd.run_sddmm(grad_output, x, structure)

    def gradient(self, grad_output: Tensor, x: Tensor) -> Tensor:
        """Return dW [rows, cols] of all entries."""
        return grad_output.t() @ x

    def gradient_rows(self, x: Tensor, grad_output: Tensor, begin: int, end: int) -> Tensor:
        """Return rows [begin, end) of dW, for an input of the layer."""
        return matrix_gradient(x, grad_output, begin, end)

    def bias_gradient(self, grad_output: Tensor) -> Tensor:
        """Return db [rows]."""
        return grad_output.sum(0)

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return Y by the whole matrix; torch differentiates it."""
        return F.linear(x, weight, bias)

    def multiply_dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return Y by the whole matrix in memory of its own, without autograd."""
        # F.linear may return a view, and autograd forbids in-place operations on one.
        y = output_like(x, weight.shape[0], self.ints)
        flat, out = autograd.flatten(x), autograd.flatten(y)
        if bias is None:
            torch.mm(flat, weight.t(), out=out)
        else:
            torch.addmm(bias, flat, weight.t(), out=out)
        return y

    def dense_input_gradient(
        self, grad_output: Tensor, weight: Tensor, size: Sequence[int]
    ) -> Tensor:
        """Return dX by the whole matrix."""
        return grad_output @ weight

    def rows_in_order(self, grad_output: Tensor, order: Tensor) -> Tensor:
        """Return the gradient of an output whose features are permuted."""
        return grad_output[..., order]

    def stands_for(self, other: Any) -> bool:
        """Whether a layer of torch, a sparse layer or another product acts on inputs alike."""
        return True

    def sparse_layer(self, weight: SparseWeight, bias: nn.Parameter | None) -> SparseLayer:
        """Make the layer that stores kept entries only."""
        return SparseLinear.of_parts(weight, bias)

    def dense_layer(self, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
        """Make the layer of torch of a matrix, without a copy."""
        return linear_of_parts(weight, bias)

    def options(self) -> dict[str, Any]:
        """Return what `product_of` makes the object of, as JSON values."""
        return {}

    def __str__(self) -> str:
        """Return what `print` of a layer shows of it."""
        return ""


class ImageProduct(Windowed, RowProduct):
    """A convolution of images [images, channels, *size] with filters as a matrix."""

    takes_rows = False

    def __init__(self, dims: int, **window: Any) -> None:
        if dims not in (1, 2, 3):
            raise ShapeError(f"ImageProduct got dims={dims!r}; images have 1, 2 or 3 dimensions")
        self.dims = dims  # type: ignore[misc]
        self.set_window(**window)
        self.ints = self.window.as_ints()  # type: ignore[misc]

    @classmethod
    def of(cls, convolution: Any) -> ImageProduct:
        """Return the product of a convolution, dense or sparse."""
        return cls(len(convolution.kernel_size), **options_of(convolution))

    def channels(self, cols: int) -> int:
        """Return the channels of the images for a matrix of so many columns."""
        return cols // math.prod(self.kernel_size) * self.groups

    def check_pattern(self, pattern: Pattern, rows: int, cols: int, who: str) -> None:
        """Raise PatternError unless the filters fit a pattern."""
        taps = math.prod(self.kernel_size)
        inputs = cols // taps
        if cols % taps or rows % self.groups:
            raise ShapeError(
                f"{who} got a weight of {rows} x {cols} for {taps} taps and {self.groups} groups; "
                "its columns must be a multiple of the taps, and its rows of the groups"
            )
        check_filters(pattern, rows, inputs, self.kernel_size, self.groups, who)

    def check_size(self, x: Tensor, cols: int) -> None:
        """Raise ShapeError unless x is images, or one, for a matrix of so many columns."""
        channels = self.channels(cols)
        if x.dim() - self.dims not in (1, 2) or x.shape[-self.dims - 1] != channels:
            raise ShapeError(
                f"x has shape {tuple(x.shape)}; [images, {channels} channels, *size] with "
                f"{self.dims} sizes is needed, or that without images"
            )

    def enter(self, x: Tensor) -> Tensor:
        """Return images, with the padding that the kernel does not make."""
        return self.padded(x.unsqueeze(0) if x.dim() == self.dims + 1 else x)

    def leave(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the output for the images, or the one image, that came."""
        return y.squeeze(0) if x.dim() == self.dims + 1 else y

    def flat(self, x: Tensor) -> Tensor:
        """Return images as they are."""
        return x

    def multiply(
        self, x: Tensor, values: Tensor, structure: Structure, bias: Tensor | None
    ) -> Tensor:
        """Return Y by the kept entries, without autograd."""
        return convolutions.convolve(x, values, structure, self.window, bias)

    def input_gradient(
        self,
        grad_output: Tensor,
        values: Tensor,
        structure: Structure,
        transposed: Transposed | None,
        size: Sequence[int],
    ) -> Tensor:
        """Return dX, for an input of a size, by the kept entries."""
        return convolutions.convolve_input(
            grad_output, values, structure, self.window, size[2:], transposed
        )

    def kept_gradient(self, grad_output: Tensor, x: Tensor, structure: Structure) -> Tensor:
        """Return dW at the kept entries [nnz]."""
        return convolutions.convolve_weight(grad_output, x, structure, self.window)

    def gradient(self, grad_output: Tensor, x: Tensor) -> Tensor:
        """Return dW [rows, cols] of all entries."""
        if self.padding_mode == "zeros":  # otherwise the images have their padding
            x = self.padded(x, always=True)
        return matrix_of(self._filter_gradient(grad_output, x, x.shape[1] // self.groups))

    def bias_gradient(self, grad_output: Tensor) -> Tensor:
        """Return db [rows]."""
        return grad_output.sum([0, *range(2, grad_output.dim())])

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return Y by all filters; torch differentiates it."""
        convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[self.dims - 1]
        padding = self.padding if self.padding_mode == "zeros" else 0
        filters = filters_of(weight, self.kernel_size)
        y: Tensor = convolve(x, filters, bias, self.stride, padding, self.dilation, self.groups)
        return y

    def multiply_dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return Y by all filters in the memory format of the images, without autograd."""
        y = output_like(x, weight.shape[0], self.ints)
        return y.copy_(self.dense(x, weight, bias))

    def dense_input_gradient(
        self, grad_output: Tensor, weight: Tensor, size: Sequence[int]
    ) -> Tensor:
        """Return dX by all filters."""
        front, behind = self.window.front, self.window.behind
        padded = [n + f + b for n, f, b in zip(size[2:], front, behind, strict=True)]
        images = grad_output.new_empty(1).expand(*size[:2], *padded)
        none = [0] * self.dims
        grad, _, _ = torch.ops.aten.convolution_backward(
            grad_output, images, filters_of(weight, self.kernel_size), None, self.stride, none,
            self.dilation, False, none, self.groups, [True, False, False],
        )  # fmt: skip
        inside = (slice(f, f + n) for f, n in zip(front, size[2:], strict=True))
        return grad[(..., *inside)]  # type: ignore[no-any-return]

    def rows_in_order(self, grad_output: Tensor, order: Tensor) -> Tensor:
        """Return the gradient of an output whose features are permuted."""
        return grad_output.index_select(1, order)

    def stands_for(self, other: Any) -> bool:
        """Whether a layer of torch, a sparse layer or another product acts on inputs alike."""
        known = all(hasattr(other, name) for name in SHAPE)
        return known and options_of(other) == options_of(self)

    def sparse_layer(self, weight: SparseWeight, bias: nn.Parameter | None) -> SparseLayer:
        """Make the layer that stores kept entries only."""
        return KINDS[self.dims - 1].of_parts(weight, bias, **options_of(self))

    def dense_layer(self, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
        """Make the layer of torch of a matrix."""
        layer: Any = KINDS[self.dims - 1].dense(
            self.channels(weight.shape[1]), weight.shape[0], bias=False, device="meta",
            **options_of(self),
        )  # fmt: skip
        filters = filters_of(weight.detach(), self.kernel_size)
        filters = filters.clone(memory_format=torch.contiguous_format)
        layer.weight, layer.bias = nn.Parameter(filters, weight.requires_grad), bias
        return layer  # type: ignore[no-any-return]

    def __str__(self) -> str:
        """Return what `print` of a layer shows of it."""
        return "".join(f", {name}={getattr(self, name)!r}" for name in SHAPE)

    def options(self) -> dict[str, Any]:
        """Return what `product_of` makes the object of, as JSON values."""
        return {"window": {"dims": self.dims, **options_of(self)}}


ROWS = RowProduct()


def output_like(x: Tensor, rows: int, ints: Sequence[int]) -> Tensor:
    """Return an uninitialised output for an input; of images, in their memory format.

    Args:
        x: the input.
        rows: of the matrix.
        ints: of the product.
    """
    if not ints:
        return x.new_empty((*x.shape[:-1], rows))
    size = Window.of_ints(ints).output_size(x.shape[2:])
    return new_images(x, (x.shape[0], rows, *size))


def parts_of(dense: nn.Module) -> tuple[nn.Parameter, RowProduct]:
    """Return the weight of a dense layer as a matrix, and how it acts.

    The weight of an `nn.Linear` is its own Parameter, that of a convolution or a `Conv1D` a copy.

    Raises:
        DTypeError: the layer is none of these. ShapeError: its weight has no shape yet.
    """
    weight: Any = dense.weight
    if isinstance(dense, nn.Linear):
        return weight, ROWS
    convolved = kind_of(dense) is not None
    matrix = (matrix_of(weight) if convolved else linear_weight(dense)).detach()
    copy = nn.Parameter(matrix.clone(memory_format=torch.contiguous_format), weight.requires_grad)
    return copy, ImageProduct.of(dense) if convolved else ROWS


def product_of(options: Mapping[str, Any]) -> RowProduct:
    """Return the product that `options` describes."""
    return ImageProduct(**options["window"]) if "window" in options else ROWS


def refuse_groups(product: RowProduct, who: str) -> None:
    """Raise PatternError for a convolution with groups of channels."""
    if isinstance(product, ImageProduct) and product.groups > 1:
        raise PatternError(
            f"{who} got a convolution with groups={product.groups}; its backward mask runs down "
            "all output channels: exclude the layer (exclude=...), or choose another recipe"
        )


__all__ = [
    "ROWS",
    "ImageProduct",
    "RowProduct",
    "output_like",
    "parts_of",
    "product_of",
    "refuse_groups",
]
