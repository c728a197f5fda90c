"""PermutedLinear: a sparse linear layer whose rows are stored in another order than its outputs.

Rows that want the same columns are neighbours, so that V of them lose little by sharing a list. The
product is that of a `SparseLinear`; its outputs are then gathered. `gossamer.pruning.group_hidden`
puts the order into the next layer instead, where that changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from gossamer.arguments import check
from gossamer.backend import check_array
from gossamer.errors import ShapeError, StructureError
from gossamer.masks import group_rows
from gossamer.nn.layers.base import copy_parameter
from gossamer.nn.layers.linear import SparseLinear, linear_weight
from gossamer.ops.recording import SYMBOLIC, as_leaf
from gossamer.ops.verbs import spmm
from gossamer.patterns import Nonzeros, Pattern, parse_pattern
from gossamer.weight import Backward, SparseWeight, Transpose


class PermutedLinear(SparseLinear):
    """A `SparseLinear` whose weight has its rows in the order `row_order`.

    Row i of `weight` computes output `row_order[i]`. `mask()`, `to_dense()`, the bias and the
    outputs have the order of the layer; `weight`, `structure` and `kept_values()` that of storage.
    A new layer of sizes has the order 0, 1, 2, …

    Attributes:
        row_order: int64 [out_features], a permutation; a buffer.
    """

    row_order: Tensor
    row_place: Tensor

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
        rest: dict[str, Any] = {"pattern": pattern, "transpose": transpose, "backward": backward}
        super().__init__(in_features, out_features, bias, device, dtype, **rest)
        order = torch.arange(self.out_features, device=self.weight.values.device)
        self._keep_order(order)

    @classmethod
    def from_dense(
        cls,
        linear: nn.Module,
        pattern: str | Pattern,
        mask: Tensor | None = None,
        score: Tensor | None = None,
        transpose: Transpose = "packed",
        backward: Backward = "exact",
    ) -> PermutedLinear:
        """Group the rows of a dense layer by `gossamer.masks.group_rows`, and keep the best.

        Args:
            linear: an `nn.Linear`, or transformers' `Conv1D`.
            pattern: a pattern or its text, whose tiles have several rows.
            mask: bool [out_features, in_features], True = kept; its rows are grouped, and then obey
                the pattern.
            score: [out_features, in_features]; None without a mask are the magnitudes.
            transpose: see `SparseLinear.from_dense`.
            backward: see the same.

        Raises:
            PatternError, StructureError, ShapeError: as `SparseLinear.from_dense`.

        Example:
            >>> layer = PermutedLinear.from_dense(nn.Linear(8, 16), "2:4:v8")
            >>> sorted(layer.row_order.tolist()) == list(range(16))
            True
        """
        dense = linear_weight(linear)
        order = order_of(dense.detach(), parse_pattern(pattern), mask, score)
        mask, score = (None if part is None else part[order] for part in (mask, score))
        weight = SparseWeight.from_dense(dense[order], pattern, mask, score, transpose, backward)
        weight.values.requires_grad_(dense.requires_grad)
        bias = copy_parameter(linear.bias)  # type: ignore[arg-type]
        return cls.of_parts(weight, bias, order).train(linear.training)

    @classmethod
    def of_parts(
        cls, weight: SparseWeight, bias: nn.Parameter | None = None, row_order: Tensor | None = None
    ) -> Self:
        """Make a layer of an existing weight, bias and order.

        Args:
            weight: the weight, with its rows as they are stored.
            bias: [out_features] in the order of the outputs, or None.
            row_order: int64 [out_features], a permutation; None is 0, 1, 2, …

        Raises:
            ShapeError: the bias has another shape.
            StructureError: the order is no permutation of the rows.

        Example:
            >>> weight = SparseWeight.from_dense(torch.eye(4), "1:4")
            >>> layer = PermutedLinear.of_parts(weight, None, torch.tensor([2, 3, 0, 1]))
            >>> layer(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist()
            [3.0, 4.0, 1.0, 2.0]
        """
        check(PermutedLinear.of_parts, locals())
        if row_order is None:
            row_order = torch.arange(weight.shape[0], device=weight.values.device)
        check_order(row_order, weight.shape[0], "of_parts")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._hold(weight, bias)
        layer._keep_order(row_order.clone())
        return layer

    def _keep_order(self, order: Tensor) -> None:
        self.weight.has_own_order = True
        self.register_buffer("row_order", order)
        self.register_buffer("row_place", order.argsort(), persistent=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear has
        """Map input [..., in_features] to [..., out_features]."""
        if type(input) is SYMBOLIC:
            return as_leaf(self, input)  # type: ignore[no-any-return]
        bias = None if self.bias is None else self.bias.index_select(0, self.row_order)
        return spmm(input, self.weight, bias).index_select(-1, self.row_place)

    def used_weight(self) -> Tensor:
        """Return the weight [out_features, in_features] by outputs; differentiable."""
        return self.weight.to_dense().index_select(0, self.row_place)

    def mask(self) -> Tensor:
        """Return the mask [out_features, in_features] by outputs, True = kept."""
        return super().mask().index_select(0, self.row_place)

    def dense_gradient(self, x: Tensor, grad_output: Tensor, begin: int, end: int) -> Tensor:
        """Return rows [begin, end) of the gradient of all entries, in the order of storage."""
        rows = grad_output.reshape(-1, self.out_features)[:, self.row_order[begin:end]]
        return rows.t() @ x.reshape(-1, self.in_features)

    def to_inference(self, transpose: Transpose = "packed") -> SparseLinear:
        """Return a copy with an exact backward pass."""
        plain = super().to_inference(transpose)
        layer = PermutedLinear.of_parts(plain.weight, plain.bias, self.row_order)
        return layer.train(self.training)

    @property
    def structure_nbytes(self) -> int:
        """Bytes of the weight's integer buffers and of both orders."""
        return super().structure_nbytes + self.row_order.nbytes + self.row_place.nbytes

    def reset_parameters(self) -> None:
        """Draw values and bias again; an order that was lost, as by `to_empty`, is made anew."""
        super().reset_parameters()
        order = self._buffers.get("row_order")
        if order is not None and not order.is_meta:
            if not is_permutation(order, self.out_features):
                order.copy_(torch.arange(self.out_features))
            self.row_place = order.argsort()

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Check the order before anything is loaded."""
        if (order := state_dict.get(prefix + "row_order")) is not None:
            check_order(order, self.out_features, f"{prefix}row_order of the state dict")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if not self.row_order.is_meta:
            self.row_place = self.row_order.argsort()


def order_of(
    dense: Tensor, pattern: Pattern, mask: Tensor | None = None, score: Tensor | None = None
) -> Tensor:
    """Return the order of the rows by a mask, a score or the magnitudes."""
    if isinstance(pattern, Nonzeros):
        pattern.refuse("order of rows", "choose a pattern such as 2:4:v16")
    given = mask if mask is not None else score
    if given is not None and given.shape != dense.shape:
        raise ShapeError(
            f"mask or score has shape {tuple(given.shape)}, the weight {tuple(dense.shape)}"
        )
    wanted = dense.abs() if given is None else given
    return group_rows(wanted.float() if wanted.dtype == torch.bool else wanted, pattern)


def check_order(order: Tensor, rows: int, who: str) -> None:
    """Raise StructureError unless an order is a permutation of the rows."""
    check_array(order, who)
    if not is_permutation(order, rows):
        raise StructureError(
            f"{who} is no permutation of {rows} rows (int64, each once): it is damaged, or belongs "
            "to another layer"
        )


def is_permutation(order: Tensor, rows: int) -> bool:
    """Return whether a tensor holds each of 0 … rows - 1 once, as int64."""
    if order.dtype != torch.int64 or order.shape != (rows,):
        return False
    return order.is_meta or torch.equal(order.sort().values.cpu(), torch.arange(rows))


__all__ = ["PermutedLinear", "check_order", "is_permutation", "order_of"]
