"""SparseLayer: what the layers have in common that store the kept entries of their weight only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from gossamer.backend import Structure
from gossamer.errors import ShapeError
from gossamer.masks import random_structure
from gossamer.nn.layers.base import MaskedLayer
from gossamer.patterns import Pattern
from gossamer.weight import Backward, SparseWeight, Transpose
from gossamer.weight.sharding import whole


class SparseLayer(MaskedLayer):
    """Base of the layers with a `SparseWeight` [out_features, in_features] and a bias.

    Attributes:
        weight: the weight.
        bias: [out_features], or None.
    """

    weight: SparseWeight
    bias: nn.Parameter | None

    def _draw(
        self,
        pattern: Pattern,
        transpose: Transpose,
        backward: Backward,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype,
    ) -> None:
        """Make a random weight and bias of the layer's sizes."""
        device = torch.device(device) if device is not None else torch.get_default_device()
        shape = self.out_features, self.in_features
        # The structure is computed in memory, even for a layer on the meta device.
        with torch.device("cpu"):
            seed = int(torch.randint(2**63 - 1, ()))
            structure = random_structure(shape, pattern, seed)
            values = torch.zeros(structure.nnz, dtype=dtype)
            self.weight = SparseWeight(values, structure, pattern, transpose, backward)
            self.bias = nn.Parameter(torch.empty(shape[0], dtype=dtype)) if bias else None
        self.reset_parameters()
        self.to(device)

    def _hold(self, weight: SparseWeight, bias: nn.Parameter | None) -> Self:
        """Take an existing weight and bias."""
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ShapeError(
                f"of_parts got a bias of shape {list(bias.shape)} for a weight of shape "
                f"{list(weight.shape)}; it must have one number per row of the weight"
            )
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.bias = bias
        return self

    @property
    def structure(self) -> Structure:
        """The positions of the kept entries."""
        return self.weight.structure

    @property
    def pattern(self) -> Pattern:
        """The pattern that the mask obeys; it does not change."""
        return self.weight.pattern

    @property
    def target(self) -> Pattern:
        """The pattern that the mask obeys; it does not change."""
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
        """Bytes of the weight's integer buffers, including its transpose."""
        return self.weight.structure_nbytes

    def kept_values(self) -> Tensor:
        """Return the values [nnz] of the weight; detached, and gathered if they are sharded."""
        return whole(self.weight.values)

    def used_weight(self) -> Tensor:
        """Return the weight as a dense matrix [out_features, in_features]; differentiable."""
        return self.weight.to_dense()

    def dense_gradient(self, x: Tensor, grad_output: Tensor, begin: int, end: int) -> Tensor:
        """Return rows [begin, end) of the gradient of all entries of the weight, kept or not.

        Args:
            x: an input of the layer.
            grad_output: the gradient of its output, dtype of x.
            begin: the first row.
            end: the row behind the last.
        """
        return matrix_gradient(x, grad_output, begin, end)

    def example(self, rows: int, generator: torch.Generator) -> Tensor:
        """Return a random input that makes about so many rows of output."""
        raise NotImplementedError

    def to_sparse(self, pattern: Pattern | None = None) -> Self:
        """Return the layer itself."""
        return self

    def reset_parameters(self) -> None:
        """Draw values and bias again; the mask changes only if it was lost, as by `to_empty`."""
        self.weight.reset_parameters()
        if self.bias is not None:
            bound = self.weight.initial_bound
            nn.init.uniform_(self.bias, -bound, bound)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Check the weight's state before torch loads the bias, because it loads parents first."""
        self.weight.check_state(state_dict, prefix + "weight.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def matrix_gradient(x: Tensor, grad_output: Tensor, begin: int, end: int) -> Tensor:
    """Return rows [begin, end) of dY^T X of x [..., cols] and grad_output [..., rows]."""
    rows = grad_output.reshape(-1, grad_output.shape[-1])[:, begin:end]
    return rows.t() @ x.reshape(-1, x.shape[-1])


__all__ = ["SparseLayer", "matrix_gradient"]
