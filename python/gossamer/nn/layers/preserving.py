"""SPP: adapters that scale the kept entries of a frozen sparse weight, so that a merge keeps them.

    values' = values (1 + s A[chunk(row), col] b[row]),    Y = X W'^T + bias

A [rank, in] scales columns, one row of it per chunk of output rows; b [out] scales rows. The factor
is a product of rank r taken at the kept entries alone, by `sddmm`: no dense matrix is ever formed.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Self, TypeGuard, cast

import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.arguments import Positive, Size, check
from gossamer.errors import PatternError
from gossamer.nn.layers.base import copy_parameter
from gossamer.nn.layers.linear import SparseLinear
from gossamer.ops.recording import SYMBOLIC, as_leaf
from gossamer.ops.verbs import sddmm, spmm
from gossamer.patterns import Pattern
from gossamer.weight import Backward, SparseWeight, Transpose


class SPPLinear(SparseLinear):
    """A frozen `SparseLinear` whose kept entries are scaled by small trained matrices.

    A new layer computes what the sparse layer does, because b is 0 (so A has no gradient in the
    first step). A stored value of exactly 0 stays 0. There is no dropout: the published one acts on
    the branch alone, and here both parts are one product; drop the layer's input instead.

    Args:
        in_features: size of an input row.
        out_features: size of an output row.
        bias: whether there is an additive bias [out_features], frozen too.
        device: see `SparseLinear`.
        dtype: see `SparseLinear`.
        pattern: see `SparseLinear`.
        transpose: see `SparseLinear`.
        backward: see `SparseLinear`.
        rank: rows of A: chunks of the output rows that have a row of A each. It need not divide
            their number; the sizes of the chunks then differ by one row.
        scale: s.

    Attributes:
        column_scale: A [rank, in_features].
        row_scale: b [out_features].
        scale: s.

    Raises:
        PatternError: the rank is larger than the number of output rows.

    Reference:
        Lu et al. 2024, "SPP: Sparsity-Preserved Parameter-Efficient Fine-Tuning for Large Language
        Models", equations 4 and 5; rank, s and the initialisation are those of its code.

    Example:
        >>> layer = SPPLinear(8, 4, pattern="2:4", rank=2)
        >>> [name for name, p in layer.named_parameters() if p.requires_grad]
        ['column_scale', 'row_scale']
    """

    column_scale: nn.Parameter
    row_scale: nn.Parameter
    scale: float

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
        rank: Size = 16,
        scale: Positive = 2.0,
    ) -> None:
        rest: dict[str, Any] = {"pattern": pattern, "transpose": transpose, "backward": backward}
        check(SPPLinear.__init__, locals())
        super().__init__(in_features, out_features, bias, device, dtype, **rest)
        self._adapt(rank, scale, None)

    @classmethod
    def of_parts(
        cls,
        weight: SparseWeight,
        bias: nn.Parameter | None = None,
        rank: Size = 16,
        scale: Positive = 2.0,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Make a layer of an existing weight and bias, which are frozen.

        Args:
            weight: the weight [out_features, in_features].
            bias: [out_features], or None.
            rank: see the class.
            scale: see the class.
            generator: generator that draws A; None is torch's own.

        Raises:
            PatternError: the rank is larger than the number of output rows.
            ShapeError: the bias has another shape.
        """
        check(SPPLinear.of_parts, locals())
        layer = cast(Self, super().of_parts(weight, bias))
        layer._adapt(rank, scale, generator)
        return layer

    def _adapt(self, rank: int, scale: float, generator: torch.Generator | None) -> None:
        """Freeze weight and bias, and draw A."""
        if rank > self.out_features:
            raise PatternError(
                f"SPPLinear got rank={rank} for a layer of {self.out_features} outputs, which it "
                f"splits into that many chunks: choose at most {self.out_features}"
            )
        self.scale = float(scale)
        values = self.weight.values
        # Drawn in float64, so that every dtype rounds the same numbers.
        drawn = torch.rand(
            rank, self.in_features, generator=generator, dtype=torch.float64, device="cpu"
        )
        bound = 1.0 / math.sqrt(max(self.in_features, 1))
        self.column_scale = nn.Parameter((bound * (2 * drawn - 1)).to(values))
        self.row_scale = nn.Parameter(values.new_zeros(self.out_features))
        for parameter in (values, self.bias):
            if parameter is not None:
                parameter.requires_grad_(False)

    def scaled_values(self) -> Tensor:
        """Return values' [nnz], what the layer multiplies by; differentiable in A and b."""
        chunks = len(self.column_scale)
        rows = torch.arange(self.out_features, device=self.row_scale.device)
        chunk = torch.arange(chunks, device=rows.device)[:, None]
        own = (rows * chunks // self.out_features == chunk) * self.row_scale
        factor = sddmm(own, self.column_scale, self.weight)  # one term of each sum is not 0
        values: Tensor = self.weight.values
        return values * (1 + self.scale * factor.to(values.dtype))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear has
        """Map input [..., in_features] to [..., out_features]."""
        if type(input) is SYMBOLIC:
            return as_leaf(self, input)  # type: ignore[no-any-return]
        return spmm(input, self.weight, self.bias, self.scaled_values())

    @property
    def weight_owner(self) -> nn.Module:
        """The layer, whose scales are its own."""
        return self

    def used_weight(self) -> Tensor:
        """Return W' [out_features, in_features], differentiable."""
        values, at = self.scaled_values(), backend.coordinates(self.structure)
        dense = values.new_zeros(self.weight.shape.numel()).index_copy(0, at, values)
        return dense.view(self.weight.shape)

    @torch.no_grad()
    def merge(self) -> SparseLinear:
        """Return a `SparseLinear` with copies of the scaled values; its mask is the same.

        A double-pruned transpose is chosen again by the new values.
        """
        weight = copy.deepcopy(self.weight)
        weight.values.copy_(self.scaled_values())
        weight.refresh_transpose()
        return SparseLinear.of_parts(weight, copy_parameter(self.bias)).train(self.training)

    def to_inference(self, transpose: Transpose = "packed") -> SparseLinear:
        """Return a merged copy with an exact backward pass."""
        return self.merge().to_inference(transpose)

    def extra_repr(self) -> str:
        """Return the line that `print(model)` shows."""
        return f"{super().extra_repr()}, rank={len(self.column_scale)}, scale={self.scale:g}"


def takes_spp(module: nn.Module) -> TypeGuard[SparseLinear]:
    """Return whether a module is a `SparseLinear` without more to it."""
    return type(module) is SparseLinear


def has_spp(module: nn.Module) -> TypeGuard[SPPLinear]:
    """Return whether a module is an `SPPLinear`."""
    return isinstance(module, SPPLinear)


__all__ = ["SPPLinear", "has_spp", "takes_spp"]
