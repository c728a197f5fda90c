"""SparseLinear: nn.Linear with a SparseWeight. Y = X W^T + b."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.backend import Structure
from gossamer.errors import DTypeError
from gossamer.masks import random_mask
from gossamer.nn.layers.base import MaskedLayer, copy_parameter
from gossamer.ops.verbs import spmm
from gossamer.patterns import Pattern, as_integer, parse_pattern
from gossamer.weight import Backward, SparseWeight, Transpose, check_dtype


class SparseLinear(MaskedLayer):
    """A linear layer that stores and trains only the kept entries of its weight.

    A drop-in for `nn.Linear`. The mask is drawn at random from torch's generator
    (`torch.manual_seed` repeats it); values and bias are drawn as nn.Linear draws them, from
    U(-b, b), but with the fan-in that an output really has: b = 1 / sqrt(in_features * density).
    So outputs start with the variance of a dense layer's.

    Args:
        in_features: size of an input row.
        out_features: size of an output row.
        bias: learn an additive bias [out_features].
        device: where the tensors are; the kernels run on the CPU. On "meta" they hold nothing
            until a state dict is loaded with `assign=True`.
        dtype: float32, float64 or bfloat16; torch's default dtype when None.
        pattern: which entries may live, such as "2:4", "2:4:v4", "90%" or "block 16x16 75%".
        transpose: "packed" or "none", see `gossamer.weight.SparseWeight`.
        backward: "exact", "double_pruned" or "transposable", likewise; a random mask is hardly
            ever transposable: build that from a mask.

    Raises:
        PatternError: the sizes do not fit the pattern.
        DTypeError: the dtype is none of the three.

    Reference:
        Evci et al. 2022, "Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win"
        (the sparse fan-in).

    Example:
        >>> import torch
        >>> layer = SparseLinear(8, 4, pattern="2:4")
        >>> layer(torch.randn(2, 3, 8)).shape
        torch.Size([2, 3, 4])
    """

    weight: SparseWeight
    bias: nn.Parameter | None

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
        self.in_features = as_integer(in_features, "SparseLinear got in_features")
        self.out_features = as_integer(out_features, "SparseLinear got out_features")
        pattern = parse_pattern(pattern)
        pattern.check_shape(out_features, in_features, "SparseLinear")
        dtype = dtype or torch.get_default_dtype()
        check_dtype(dtype, "SparseLinear")
        device = torch.device(device) if device is not None else torch.get_default_device()
        # The structure needs memory to be computed in, whatever device the layer then goes to.
        with torch.device("cpu"):
            seed = int(torch.randint(2**63 - 1, ()))
            mask = random_mask((out_features, in_features), pattern, seed)
            blank = torch.zeros(mask.shape, dtype=dtype)
            self.weight = SparseWeight.from_dense(
                blank, pattern, mask, transpose=transpose, backward=backward
            )
            self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype)) if bias else None
        self.reset_parameters()
        self.to(device)

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
        """The sparse layer of a dense one; its kept entries and bias are copied, not rescaled.

        Args:
            linear: an `nn.Linear`, or transformers' `Conv1D`, whose weight is [in, out].
            pattern: a pattern or its text.
            mask: bool [out_features, in_features], True = kept; must obey the pattern.
            score: [out_features, in_features]; the highest are kept. Magnitude when neither.
            transpose: "packed" or "none", see `gossamer.weight.SparseWeight`.
            backward: "exact", "double_pruned" or "transposable", likewise.

        Returns:
            A new layer with the dense one's dtype, training mode and `requires_grad`.

        Raises:
            DTypeError: neither kind of layer, or a dtype that the kernels have not.
            PatternError, StructureError, ShapeError: sizes, mask or score do not fit.

        Example:
            >>> import torch
            >>> SparseLinear.from_dense(torch.nn.Linear(8, 4), "1:4").weight.density
            0.25
        """
        dense = dense_weight(linear)
        weight = SparseWeight.from_dense(dense, pattern, mask, score, transpose, backward)
        weight.values.requires_grad_(dense.requires_grad)
        bias = copy_parameter(linear.bias)  # type: ignore[arg-type]
        return cls.of_parts(weight, bias).train(linear.training)

    @classmethod
    def of_parts(cls, weight: SparseWeight, bias: nn.Parameter | None) -> SparseLinear:
        """A layer around a weight and a bias that exist already, and may be shared."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.out_features, layer.in_features = weight.shape
        layer.weight = weight
        layer.bias = bias
        return layer

    @property
    def structure(self) -> Structure:
        """The positions of the kept entries."""
        return self.weight.structure

    @property
    def pattern(self) -> Pattern:
        """The pattern that the mask obeys; it stays the same."""
        return self.weight.pattern

    @property
    def target(self) -> Pattern:
        """The pattern that the mask obeys; it stays the same."""
        return self.weight.pattern

    @property
    def entries(self) -> nn.Parameter:
        """The values [nnz] of the weight."""
        return self.weight.values

    @property
    def sparse_weight(self) -> SparseWeight:
        """The weight."""
        return self.weight

    @property
    def weight_owner(self) -> nn.Module:
        """The weight, which several layers may share."""
        return self.weight

    @property
    def nnz(self) -> int:
        """The number of kept entries."""
        return self.weight.nnz

    @property
    def structure_nbytes(self) -> int:
        """Bytes of the weight's integer buffers, those of its transpose too."""
        return self.weight.structure_nbytes

    def kept_values(self) -> Tensor:
        """The values [nnz] of the weight; detached."""
        return self.weight.values.detach()

    def used_weight(self) -> Tensor:
        """The weight as a dense matrix [out_features, in_features]; differentiable."""
        return self.weight.to_dense()

    def to_sparse(self, pattern: Pattern | None = None) -> SparseLinear:
        """The layer itself."""
        return self

    def to_inference(self, transpose: Transpose = "packed") -> SparseLinear:
        """A copy with an exact backward pass."""
        old = self.weight
        weight = SparseWeight(old.values.clone(), old.structure, old.pattern, transpose)
        weight.values.requires_grad_(old.values.requires_grad)
        return SparseLinear.of_parts(weight, copy_parameter(self.bias)).train(self.training)

    def reset_parameters(self) -> None:
        """Draw values and bias anew; the mask stays."""
        fan_in = max(self.in_features * self.weight.density, 1.0)
        bound = 1.0 / math.sqrt(fan_in)
        nn.init.uniform_(self.weight.values, -bound, bound)
        self.weight.refresh_transpose()
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear has
        """Map input [..., in_features] to [..., out_features]."""
        return spmm(input, self.weight, self.bias)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Check the weight's part before the bias is written: torch loads parents first."""
        self.weight.check_state(state_dict, prefix + "weight.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """The line that `print(model)` shows."""
        has_bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={has_bias}"


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' Conv1D, a linear layer with its weight as [in, out].

    By its name and shape, so that transformers need not be there.
    """
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__ == "Conv1D"
        and isinstance(weight, Tensor)
        and weight.dim() == 2
        and getattr(module, "nf", None) == weight.shape[1]
    )


def dense_weight(module: nn.Module) -> Tensor:
    """The weight [out_features, in_features] of a dense linear layer of either kind.

    Raises:
        DTypeError: it is neither kind.
    """
    if isinstance(module, nn.Linear):
        return module.weight
    if is_conv1d(module):
        weight: Tensor = module.weight  # type: ignore[assignment]
        return weight.t()
    raise DTypeError(
        f"SparseLinear.from_dense got {type(module).__name__}; it takes nn.Linear or "
        "transformers' Conv1D"
    )
