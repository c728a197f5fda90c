"""SparseLinear: nn.Linear with a SparseWeight, Y = X W^T + b."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.arguments import check
from gossamer.errors import DTypeError
from gossamer.nn.layers.base import copy_parameter
from gossamer.nn.layers.convolution import kind_of
from gossamer.nn.layers.filters import matrix_of
from gossamer.nn.layers.sparse import SparseLayer
from gossamer.ops.recording import SYMBOLIC, as_leaf
from gossamer.ops.verbs import spmm
from gossamer.patterns import Pattern, as_integer, parse_pattern
from gossamer.weight import Backward, SparseWeight, Transpose, check_dtype


class SparseLinear(SparseLayer):
    """A linear layer that stores and trains only the kept entries of its weight.

    A drop-in for `nn.Linear`. torch's generator draws the mask (`torch.manual_seed` repeats it).
    Values and bias are drawn like those of nn.Linear, from U(-b, b), but with the sparse fan-in:
    b = 1 / sqrt(in_features * density). So the initial outputs have the variance of a dense
    layer's.

    Args:
        in_features: size of an input row.
        out_features: size of an output row.
        bias: whether to learn an additive bias [out_features].
        device: device of the tensors. On "meta" the tensors are empty
            until a state dict is loaded with `assign=True`, or `to_empty` and `reset_parameters`
            draw the layer anew.
        dtype: float32, float64 or bfloat16; None is torch's default dtype.
        pattern: pattern of the mask, such as "2:4", "2:4:v4", "90%" or "block 16x16 75%".
        transpose: "packed" or "none", see `gossamer.weight.SparseWeight`.
        backward: "exact", "double_pruned" or "transposable", see `gossamer.weight.SparseWeight`; a
            random mask is rarely transposable: use `from_dense` with a mask.

    Raises:
        PatternError: the sizes do not fit the pattern.
        DTypeError: the dtype is not supported.

    Reference:
        Evci et al. 2022, "Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win"
        (the sparse fan-in).

    Example:
        >>> import torch
        >>> layer = SparseLinear(8, 4, pattern="2:4")
        >>> layer(torch.randn(2, 3, 8)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        pattern: str | Pattern,
        transpose: Transpose = "packed",
        backward: Backward = "exact",
    ) -> None:
        super().__init__()
        pattern = parse_pattern(pattern)
        check(SparseLinear.__init__, locals())
        self.in_features = as_integer(in_features, "SparseLinear got in_features")
        self.out_features = as_integer(out_features, "SparseLinear got out_features")
        pattern.check_shape(out_features, in_features, "SparseLinear")
        dtype = torch.get_default_dtype() if dtype is None else dtype
        check_dtype(dtype, "SparseLinear")
        self._draw(pattern, transpose, backward, bias, device, dtype)

    @classmethod
    def from_dense(
        cls,
        linear: nn.Module,
        pattern: str | Pattern,
        mask: Tensor | None = None,
        score: Tensor | None = None,
        transpose: Transpose = "packed",
        backward: Backward = "exact",
    ) -> SparseLinear:
        """Make a sparse layer from a dense one; kept entries and bias are copied, not rescaled.

        Args:
            linear: an `nn.Linear`, or transformers' `Conv1D`, whose weight is [in, out].
            pattern: a pattern or its text.
            mask: bool [out_features, in_features], True = kept; must obey the pattern.
            score: [out_features, in_features]; entries with the highest scores are kept. Without
                mask and score, the largest magnitudes are kept.
            transpose: "packed" or "none", see `gossamer.weight.SparseWeight`.
            backward: "exact", "double_pruned" or "transposable", see the same.

        Returns:
            A new layer with the dense one's dtype, training mode and `requires_grad`.

        Raises:
            DTypeError: the layer is not an nn.Linear or Conv1D, or its dtype is not supported.
            PatternError, StructureError, ShapeError: the sizes, the mask or the score do not fit.

        Example:
            >>> import torch
            >>> SparseLinear.from_dense(torch.nn.Linear(8, 4), "1:4").weight.density
            0.25
        """
        dense = linear_weight(linear)
        weight = SparseWeight.from_dense(dense, pattern, mask, score, transpose, backward)
        weight.values.requires_grad_(dense.requires_grad)
        bias = copy_parameter(linear.bias)  # type: ignore[arg-type]
        return cls.of_parts(weight, bias).train(linear.training)

    @classmethod
    def of_parts(cls, weight: SparseWeight, bias: nn.Parameter | None = None) -> SparseLinear:
        """Make a layer of an existing weight and bias, which may be shared with other layers.

        Args:
            weight: the weight [out_features, in_features], for example from
                `SparseWeight.from_scipy`.
            bias: [out_features], or None.

        Returns:
            A layer that holds these objects.

        Raises:
            ShapeError: the bias has another shape.

        Example:
            >>> import torch
            >>> matrix = torch.eye(4).to_sparse()
            >>> SparseLinear.of_parts(SparseWeight.from_torch_sparse(matrix)).in_features
            4
        """
        check(SparseLinear.of_parts, locals())
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        return layer._hold(weight, bias)

    def example(self, rows: int, generator: torch.Generator) -> Tensor:
        """Return a random input of so many rows."""
        x = torch.randn(rows, self.in_features, generator=generator)
        return x.to(self.weight.values.dtype)

    def to_inference(self, transpose: Transpose = "packed") -> SparseLinear:
        """Return a copy with an exact backward pass."""
        old = self.weight
        structure = copy.deepcopy(old.structure)
        weight = SparseWeight(old.values.clone(), structure, old.pattern, transpose)
        weight.values.requires_grad_(old.values.requires_grad)
        return SparseLinear.of_parts(weight, copy_parameter(self.bias)).train(self.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear has
        """Map input [..., in_features] to [..., out_features]."""
        if type(input) is SYMBOLIC:
            return as_leaf(self, input)  # type: ignore[no-any-return]
        return spmm(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return the line that `print(model)` shows."""
        has_bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={has_bias}"


def is_conv1d(module: nn.Module) -> bool:
    """Return whether a module is transformers' Conv1D, a linear layer with a weight [in, out].

    The check uses name and shape, so that transformers need not be installed.
    """
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__ == "Conv1D"
        and isinstance(weight, Tensor)
        and weight.dim() == 2
        and getattr(module, "nf", None) == weight.shape[1]
    )


def is_pruned(module: nn.Module) -> bool:
    """Return whether torch.nn.utils.prune computes the weight of a linear layer or convolution."""
    known = type(module) is nn.Linear or kind_of(module) is not None or is_conv1d(module)
    return known and "weight_orig" in module._parameters and "weight_mask" in module._buffers


def trained_weight(module: nn.Module) -> nn.Parameter:
    """Return the Parameter behind the weight of a linear layer or convolution."""
    return module.weight_orig if is_pruned(module) else module.weight  # type: ignore[return-value]


def used_weight(module: nn.Module) -> Tensor:
    """Return the weight of a linear layer or convolution as torch stores it, pruned if it is."""
    if is_pruned(module):
        return module.weight_orig * module.weight_mask  # type: ignore[operator]
    return module.weight  # type: ignore[return-value]


def dense_weight(module: nn.Module) -> Tensor:
    """Return the weight [out_features, in_features] of a linear layer or a convolution.

    Raises:
        DTypeError: the module is no `nn.Linear`, `Conv1D`, `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d`.
    """
    if kind_of(module) is not None:
        return matrix_of(used_weight(module))
    return linear_weight(module)


def dense_mask(module: nn.Module) -> Tensor | None:
    """Return the mask [out_features, in_features] of a pruned layer, None for other layers."""
    if not is_pruned(module):
        return None
    mask: Any = module.weight_mask
    if kind_of(module) is not None:
        return matrix_of(mask).bool()
    kept: Tensor = (mask.t() if is_conv1d(module) else mask).bool()
    return kept


def linear_weight(module: nn.Module) -> Tensor:
    """Return the weight [out_features, in_features] of a linear layer.

    Raises:
        DTypeError: the module is no `nn.Linear` or `Conv1D`.
    """
    if isinstance(module, nn.Linear):
        return used_weight(module)
    if is_conv1d(module):
        return used_weight(module).t()
    raise DTypeError(
        f"SparseLinear.from_dense got {type(module).__name__}; it takes nn.Linear or "
        "transformers' Conv1D"
    )
