"""DenseLinear: a layer that computes densely until its mask is set, then under it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from gossamer.nn.layers.linear import SparseLinear
from gossamer.nn.layers.masked import MaskedLinear


class DenseLinear(MaskedLinear):
    """A layer that computes densely (`softness` 1) until its mask is set, then under it.

    Afterwards the gradient is that of the kept entries alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in_features] to [..., out_features]."""
        if self.softness.item() < 1.0:
            return super().forward(x)
        return F.linear(x, self.weight, self.bias)

    def to_sparse(self) -> SparseLinear:
        """The `SparseLinear` of the same function, or of the largest entries of a dense one."""
        if self.softness.item() == 1.0:
            self.set_pattern(self.pattern)
        return super().to_sparse()


__all__ = ["DenseLinear"]
