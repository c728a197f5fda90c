"""A dense layer that multiplies by some entries of its weight, for the time of a pass.

    Y = X W~^T + b,  W~ = M * W,  dX = dY W~,  dW = M * dY^T X

The layer stays what it is, with its Parameters and hooks; only its `forward` is another one, by the
sparse kernels. Inputs that these do not take (while a graph is compiled, on another device) go the
layer's own way, so the weight itself must hold M * W meanwhile.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from gossamer import backend
from gossamer.backend import Structure
from gossamer.nn.layers.filters import filters_of, matrix_of
from gossamer.nn.layers.linear import is_conv1d, trained_weight
from gossamer.nn.layers.products import ROWS, ImageProduct
from gossamer.nn.layers.replacing import is_convolution
from gossamer.nn.layers.straight_through import Masked, Parameters, Wanted
from gossamer.ops.autocast import autocast, is_autocast
from gossamer.ops.verbs import is_plain


class PrunedPass:
    """The forward pass of one layer by the kept entries of its weight, and its gradients.

    Args:
        layer: an `nn.Linear`, `Conv1D` or convolution.
        masked: whether the entries that are not kept get no gradient.
    """

    def __init__(self, layer: nn.Module, masked: bool = True) -> None:
        self.layer, self.masked = layer, masked
        self.weight = trained_weight(layer)
        self.product = ImageProduct.of(layer) if is_convolution(layer) else ROWS
        self.is_served = False
        self._values: Tensor | None = None
        self._structure: Any = None

    def matrix(self, weight: Tensor) -> Tensor:
        """Return a tensor in the shape of the weight as the matrix [out, in]."""
        if isinstance(self.product, ImageProduct):
            return matrix_of(weight)
        return weight.t() if is_conv1d(self.layer) else weight

    def stored(self, matrix: Tensor) -> Tensor:
        """Return a matrix [out, in] in the shape of the weight."""
        if isinstance(self.product, ImageProduct):
            return filters_of(matrix, self.product.kernel_size)
        return matrix.t() if is_conv1d(self.layer) else matrix

    def serve(self, values: Tensor, structure: Structure, stack: ExitStack) -> None:
        """Multiply by values [nnz] until the stack is closed.

        A layer whose `forward` somebody has replaced keeps that.
        """
        self.is_served = False
        if "forward" not in vars(self.layer):
            self._values, self._structure = values, structure
            self.layer.forward = self._forward
            stack.callback(self._leave)

    def _leave(self) -> None:
        del self.layer.forward
        self._values = self._structure = None

    def _forward(self, x: Tensor) -> Tensor:
        bias: Any = self.layer.bias
        values = self._values
        mixed = isinstance(x, Tensor) and is_autocast(x)
        if values is None or not is_plain(x) or not (mixed or x.dtype == values.dtype):
            y: Tensor = type(self.layer).forward(self.layer, x)
            return y
        self.is_served = True
        product = self.product
        product.check_size(x, self._structure.layout.cols)
        given, x = x, product.enter(x)
        if mixed:
            x, values, bias = autocast(x, values, bias, device=x.device.type)
        y = Masked.apply(x, bias, values, self._structure, self, self.weight)  # type: ignore[no-untyped-call]
        return product.leave(y, given)

    def gradients(
        self,
        grad_output: Tensor,
        x: Tensor,
        parameters: Parameters,
        values: Tensor,
        structure: Structure,
        wanted: Wanted,
        size: Any,
    ) -> tuple[Tensor | None, tuple[Tensor | None, ...], Tensor | None]:
        """Return the gradients of the input, of the weight and of the bias, where wanted."""
        need_x, need_weight, need_bias = wanted
        product, grad_weight = self.product, None
        flat = product.flat(grad_output)
        if need_weight and self.masked:
            kept = product.kept_gradient(flat, product.flat(x), structure)
            grad_weight = self.stored(backend.scatter(kept, structure))
        elif need_weight:
            grad_weight = self.stored(product.gradient(flat, product.flat(x)))
        return (
            product.input_gradient(grad_output, values, structure, None, size) if need_x else None,
            (grad_weight,),
            product.bias_gradient(flat) if need_bias else None,
        )


__all__ = ["PrunedPass"]
