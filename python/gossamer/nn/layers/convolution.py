"""SparseConv1d, 2d and 3d: torch's convolutions with a `SparseWeight`.

The weight is a matrix. Its columns are ordered by tap, then by channel, so that the m columns of a
group of N:M are neighbouring input channels of one tap:

    torch   [out, channels, kh, kw]        here   [out, kh * kw * channels]

                 channel 0   channel 1            tap (0, 0)   (0, 1)   (1, 0)   (1, 1)
    row out      a b         e f                  a e          b f      c g      d h
                 c d         g h

The products read the images through an offset per column: no im2col is written.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from gossamer.arguments import check, shown
from gossamer.errors import DTypeError, ShapeError
from gossamer.nn.layers.base import copy_parameter
from gossamer.nn.layers.filters import as_matrix, check_filters, filters_of, matrix_of, options_of
from gossamer.nn.layers.sparse import SparseLayer
from gossamer.nn.layers.windows import Sizes, Windowed
from gossamer.ops.convolutions import convolve
from gossamer.ops.recording import SYMBOLIC, as_leaf
from gossamer.patterns import Pattern, as_integer, parse_pattern
from gossamer.weight import SparseWeight, Transpose, check_dtype


class SparseConv(SparseLayer, Windowed):
    """Base of the sparse convolutions; use `SparseConv1d`, `SparseConv2d` or `SparseConv3d`.

    Attributes:
        in_channels: channels of the images.
        out_channels: channels of the output, the rows of the weight.
        in_features: columns of the weight: taps times channels of a group.
        out_features: rows of the weight.
    """

    dims: ClassVar[int]
    dense: ClassVar[type[nn.Module]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        pattern: str | Pattern,
        transpose: Transpose = "packed",
    ) -> None:
        super().__init__()
        pattern = parse_pattern(pattern)
        check(SparseConv.__init__, locals())
        self.set_window(kernel_size, stride, padding, dilation, groups, padding_mode)
        who = type(self).__name__
        self.in_channels = as_integer(in_channels, f"{who} got in_channels")
        self.out_channels = as_integer(out_channels, f"{who} got out_channels")
        for name, channels in (("in", self.in_channels), ("out", self.out_channels)):
            if channels % self.groups:
                raise ShapeError(
                    f"{who} got {name}_channels={channels} and groups={self.groups}; the channels "
                    "must be a multiple of the groups"
                )
        inputs = self.in_channels // self.groups
        check_filters(pattern, self.out_channels, inputs, self.kernel_size, self.groups, who)
        self.out_features = self.out_channels
        self.in_features = inputs * math.prod(self.kernel_size)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        check_dtype(dtype, who)
        self._draw(pattern, transpose, "exact", bias, device, dtype)

    @classmethod
    def from_dense(
        cls,
        convolution: nn.Module,
        pattern: str | Pattern,
        mask: Tensor | None = None,
        score: Tensor | None = None,
        transpose: Transpose = "packed",
    ) -> Self:
        """Make a sparse layer from a dense one; kept entries and bias are copied, not rescaled.

        Args:
            convolution: the layer of torch, not transposed.
            pattern: a pattern or its text.
            mask: bool in the shape of the dense weight or of the matrix, True = kept; must obey the
                pattern.
            score: in one of these shapes; entries with the highest scores are kept. Without mask
                and score, the largest magnitudes are kept.
            transpose: "packed" or "none", see `gossamer.weight.SparseWeight`.

        Returns:
            A new layer with the dense one's dtype, training mode and `requires_grad`.

        Raises:
            DTypeError: the layer is not such a convolution, or its dtype is not supported.
            PatternError, StructureError, ShapeError: the sizes, the mask or the score do not fit.
        """
        if not isinstance(convolution, cls.dense):
            raise DTypeError(
                f"{cls.__name__}.from_dense got {type(convolution).__name__}; it takes "
                f"nn.{cls.dense.__name__}"
            )
        weight: Any = convolution.weight
        pattern = parse_pattern(pattern)
        groups: Any = convolution.groups
        matrix = matrix_of(weight)
        rows, channels, *kernel = weight.shape
        check_filters(pattern, rows, channels, tuple(kernel), groups, f"{cls.__name__}.from_dense")
        mask, score = (t if t is None else as_matrix(t, weight.shape) for t in (mask, score))
        sparse = SparseWeight.from_dense(matrix, pattern, mask, score, transpose)
        sparse.values.requires_grad_(weight.requires_grad)
        bias = copy_parameter(convolution.bias)  # type: ignore[arg-type]
        return cls.like(convolution, sparse, bias).train(convolution.training)

    @classmethod
    def like(cls, other: nn.Module, weight: SparseWeight, bias: nn.Parameter | None) -> Self:
        """Make a layer of an existing weight and bias, with the window of another convolution.

        Raises:
            ShapeError: weight, bias and window do not fit.
        """
        return cls.of_parts(weight, bias, **options_of(other))

    @classmethod
    def of_parts(
        cls,
        weight: SparseWeight,
        bias: nn.Parameter | None = None,
        *,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> Self:
        """Make a layer of an existing weight and bias, which may be shared with other layers.

        Args:
            weight: the matrix [out_channels, taps * in_channels / groups].
            bias: [out_channels], or None.
            kernel_size: as in the constructor, like what follows.
            stride: pixels from a window to the next.
            padding: pixels around the image.
            dilation: pixels from a tap to the next.
            groups: groups of channels.
            padding_mode: what the padding holds.

        Raises:
            ShapeError: weight, bias and window do not fit.
        """
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.set_window(kernel_size, stride, padding, dilation, groups, padding_mode)
        layer._hold(weight, bias)
        taps = math.prod(layer.kernel_size)
        if layer.in_features % taps or layer.out_features % layer.groups:
            raise ShapeError(
                f"{cls.__name__} got a weight of {layer.out_features} x {layer.in_features} for "
                f"{taps} taps and {layer.groups} groups; its columns must be a multiple of the "
                "taps, and its rows of the groups"
            )
        layer.in_channels = layer.in_features // taps * layer.groups
        layer.out_channels = layer.out_features
        return layer

    @property
    def takes_rows(self) -> bool:
        """No: images."""
        return False

    def stands_for(self, dense: nn.Module) -> bool:
        """Whether another convolution has the same channels and window."""
        of_kind = type(dense) in (self.dense, type(self))
        names = ("in_channels", "out_channels")
        return (
            of_kind
            and all(getattr(dense, name) == getattr(self, name) for name in names)
            and options_of(dense) == options_of(self)
        )

    def dense_gradient(self, x: Tensor, grad_output: Tensor, begin: int, end: int) -> Tensor:
        """Return rows [begin, end) of the gradient of all entries of the weight, kept or not."""
        check(SparseConv.dense_gradient, locals())
        return self.gradient_rows(x, grad_output, begin, end)

    def example(self, rows: int, generator: torch.Generator) -> Tensor:
        """Return random images of middling size, with about so many pixels of output."""
        check(SparseConv.example, locals())
        side = {1: 196, 2: 14, 3: 6}[self.dims]
        size = [
            max((side - 1) * s + d * (k - 1) + 1 - f - b, k)
            for k, s, d, f, b in zip(
                self.kernel_size, self.stride, self.dilation, self._front, self._behind, strict=True
            )
        ]
        images = max(1, round(rows / side**self.dims))
        x = torch.randn(images, self.in_channels, *size, generator=generator)
        return x.to(self.weight.values.dtype)

    def filters(self) -> Tensor:
        """Return the weight as torch stores it, [out, channels / groups, *kernel_size].

        It is dense, and differentiable in the values.
        """
        return filters_of(self.used_weight(), self.kernel_size)

    def to_dense(self) -> Any:
        """Return an equivalent convolution of torch; a copy."""
        layer = self.dense(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding,
            self.dilation, self.groups, self.bias is not None, self.padding_mode, device="meta",
        )  # fmt: skip
        weight = self.filters().detach().clone(memory_format=torch.contiguous_format)
        layer.weight = nn.Parameter(weight, self.entries.requires_grad)
        layer.bias = copy_parameter(self.bias)  # type: ignore[assignment]
        return layer.train(self.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch has
        """Map input [images, in_channels, *size] to [images, out_channels, *output size].

        Without the images' dimension, the output has none either.
        """
        if type(input) is SYMBOLIC:
            return as_leaf(self, input)  # type: ignore[no-any-return]
        if not isinstance(input, Tensor) or input.dim() - self.dims not in (1, 2):
            raise ShapeError(
                f"{type(self).__name__} got {shown(input)}; [images, {self.in_channels} channels, "
                f"*size] with {self.dims} sizes is needed, or that without images"
            )
        x = input.unsqueeze(0) if input.dim() == self.dims + 1 else input
        x = self.padded(x)
        y = convolve(x, self.weight, self.window, self.bias)
        return y.squeeze(0) if input.dim() == self.dims + 1 else y

    def extra_repr(self) -> str:
        """Return the line that `print(model)` shows."""
        usual = {
            "padding": (0,) * self.dims,
            "dilation": (1,) * self.dims,
            "groups": 1,
            "padding_mode": "zeros",
        }
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}"
        for name, value in usual.items():
            if (own := getattr(self, name)) != value:
                text += f", {name}={own}"
        return text if self.bias is not None else text + ", bias=False"


class SparseConv1d(SparseConv):
    """A 1-D convolution that stores and trains only the kept entries of its weight.

    A drop-in for `nn.Conv1d`; the arguments are those of `SparseConv2d`.

    Example:
        >>> layer = SparseConv1d(8, 4, 3, padding=1, pattern="2:4")
        >>> layer(torch.randn(2, 8, 9)).shape
        torch.Size([2, 4, 9])
    """

    dims, dense = 1, nn.Conv1d


class SparseConv2d(SparseConv):
    """A 2-D convolution that stores and trains only the kept entries of its weight.

    A drop-in for `nn.Conv2d`. torch's generator draws the mask. Values and bias are drawn from
    U(-b, b) with the sparse fan-in: b = 1 / sqrt(kept entries per row). The weight is the matrix
    [out_channels, taps * in_channels / groups], whose columns are ordered by tap, then by channel;
    `filters()` returns it in the shape of torch.

    Args:
        in_channels: channels of the images.
        out_channels: channels of the output.
        kernel_size: taps; one number, or one per dimension, as in stride, padding and dilation.
        stride: pixels from a window to the next.
        padding: pixels around the image, "same" or "valid".
        dilation: pixels from a tap to the next.
        groups: groups of channels, each with its own filters.
        bias: whether to learn an additive bias [out_channels].
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: device of the tensors.
        dtype: float32, float64 or bfloat16; None is torch's default dtype.
        pattern: pattern of the mask, such as "90%:v4", "2:4:v4" or, over whole filters,
            "block 1x576 50%". Groups of N:M run along the channels of a tap.
        transpose: "packed" or "none", see `gossamer.weight.SparseWeight`.

    Raises:
        PatternError: the sizes do not fit the pattern.
        ShapeError: a size is out of range.
        DTypeError: the dtype is not supported.

    Example:
        >>> layer = SparseConv2d(8, 4, 3, padding=1, pattern="2:4")
        >>> layer(torch.randn(2, 8, 9, 9)).shape, layer.weight.shape
        (torch.Size([2, 4, 9, 9]), torch.Size([4, 72]))
    """

    dims, dense = 2, nn.Conv2d


class SparseConv3d(SparseConv):
    """A 3-D convolution that stores and trains only the kept entries of its weight.

    A drop-in for `nn.Conv3d`; the arguments are those of `SparseConv2d`.

    Example:
        >>> layer = SparseConv3d(8, 4, 3, padding=1, pattern="2:4")
        >>> layer(torch.randn(2, 8, 5, 5, 5)).shape
        torch.Size([2, 4, 5, 5, 5])
    """

    dims, dense = 3, nn.Conv3d


KINDS: tuple[type[SparseConv], ...] = (SparseConv1d, SparseConv2d, SparseConv3d)


def kind_of(module: nn.Module) -> type[SparseConv] | None:
    """Return the sparse class for a convolution of torch, None for other modules."""
    return next((kind for kind in KINDS if type(module) is kind.dense), None)


__all__ = ["KINDS", "SparseConv", "SparseConv1d", "SparseConv2d", "SparseConv3d", "kind_of"]
