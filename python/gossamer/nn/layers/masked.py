"""MaskedLinear: a linear layer that trains a dense weight and computes with a masked part of it.

    Y = X W~^T + b,  W~ = W at the kept entries,  dX = dY W~,  dW = dY^T X

The products with W~ run on the sparse kernels; the gradient goes straight through the mask to the
whole dense weight (Bengio et al. 2013), or to the kept entries alone. It trains no faster than its
dW, and no smaller than dense: `SparseLinear` is the layer that keeps nothing but its entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from gossamer import backend
from gossamer.backend import Layout, Structure, Transposed
from gossamer.errors import ShapeError, StructureError
from gossamer.masks import check_mask, magnitude_mask
from gossamer.masks.n_of_m import add_pruned_, select_nm
from gossamer.nn.layers.linear import SparseLinear, copy_parameter, dense_weight
from gossamer.ops import autograd
from gossamer.ops.autocast import autocast, is_autocast
from gossamer.patterns import NM, Pattern, parse_pattern
from gossamer.weight import SparseWeight, check_dense
from gossamer.weight.descriptor import describe, group_of, pattern_of

Gradient = Literal["dense", "kept"]
_STRUCTURE = ("indices", "indptr", "descriptor")


class MaskedLinear(nn.Module):
    """A linear layer with a dense, trained weight [out_features, in_features] under a mask.

    The mask is picked anew from the weight in every forward pass (`moving`), or held until
    `set_mask` moves it. A subclass may change `pack` (what the forward pass multiplies by),
    `input_gradient` and `weight_gradient`.

    Args:
        weight: [out_features, in_features]; the Parameter that is trained.
        bias: [out_features], or None.
        pattern: which entries may live.
        moving: pick the mask from the weight's magnitudes in every forward pass.
        gradient: "dense" sends dY^T X to every entry (straight through), "kept" to the kept ones;
            the others get 0.

    Attributes:
        softness: share of itself with which a masked entry still takes part in the forward pass,
            in [0, 1]; 0 is a hard mask, above 0 the products are dense. A 0-d buffer.

    Raises:
        PatternError: the sizes do not fit the pattern.
        DTypeError, DeviceError: a weight that the kernels cannot take.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    softness: Tensor
    indices: Tensor
    indptr: Tensor | None
    descriptor: Tensor

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        pattern: str | Pattern,
        moving: bool = True,
        gradient: Gradient = "dense",
    ) -> None:
        super().__init__()
        check_dense(weight)
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.bias = bias
        self.moving = moving
        self.gradient: Gradient = gradient
        self.register_buffer("softness", torch.zeros((), dtype=torch.float64))
        for name in _STRUCTURE:
            self.register_buffer(name, None)
        self.set_pattern(pattern)

    @classmethod
    def from_dense(
        cls, linear: nn.Module, pattern: str | Pattern, *args: Any, **kwargs: Any
    ) -> MaskedLinear:
        """The layer of an `nn.Linear` (its Parameters are taken over) or of a `Conv1D` (copied)."""
        if isinstance(linear, nn.Linear):
            weight = linear.weight
        else:
            dense = dense_weight(linear)
            weight = nn.Parameter(dense.detach().clone(memory_format=torch.contiguous_format))
        return cls(weight, linear.bias, pattern, *args, **kwargs)  # type: ignore[arg-type]

    @property
    def structure(self) -> Structure:
        """Where the kept entries stand: as the last forward pass or `set_mask` left them."""
        return Structure(self._layout, self.indices, self.indptr)

    @property
    def nnz(self) -> int:
        """The number of kept entries."""
        return self.structure.nnz

    @property
    def density(self) -> float:
        """Kept entries over all entries, in [0, 1]."""
        return self.nnz / max(self.weight.numel(), 1)

    def mask(self) -> Tensor:
        """The kept entries as a bool tensor [out_features, in_features], True = kept."""
        mask = torch.zeros(self.weight.numel(), dtype=torch.bool)
        mask[backend.coordinates(self.structure)] = True
        return mask.view(self.weight.shape)

    def set_pattern(self, pattern: str | Pattern) -> None:
        """Change the pattern and pick its mask by magnitude.

        Raises:
            PatternError: the sizes do not fit; nothing changed.
        """
        pattern = parse_pattern(pattern)
        pattern.check_shape(self.out_features, self.in_features, "MaskedLinear")
        self.set_mask(magnitude_mask(self.weight.detach(), pattern), pattern)

    def set_mask(self, mask: Tensor, pattern: Pattern | None = None) -> None:
        """Hold another mask, of this pattern or of a given one; values outside it stay as they are.

        Args:
            mask: bool [out_features, in_features], True = kept.
            pattern: the pattern that the mask obeys from now on; None for the same.

        Raises:
            ShapeError, StructureError: a mask of another shape or pattern; nothing changed.
        """
        pattern = pattern or self.pattern
        if mask.shape != self.weight.shape:
            raise ShapeError(
                f"mask has shape {tuple(mask.shape)}, the weight {tuple(self.weight.shape)}; give "
                "one entry for each entry of the weight"
            )
        check_mask(mask, pattern)
        self._hold(backend.encode(mask, pattern.panel, *group_of(pattern)), pattern)

    def pack(self) -> tuple[Tensor, Structure]:
        """What the forward pass multiplies by: the kept values [nnz], and where they stand."""
        weight = self.weight.detach()
        if not self.moving:
            return backend.gather(weight, self.structure), self.structure
        values, structure = self._pick(weight)
        self._hold(structure, self.pattern)
        return values, structure

    def used_weight(self) -> Tensor:
        """The dense matrix [out_features, in_features] that the forward pass multiplies by."""
        softness = self.softness.item()
        if softness == 1.0:
            return self.weight.detach()
        with torch.no_grad():
            values, structure = self.pack()
            dense: Tensor = backend.scatter(values, structure)
            if softness:
                add_pruned_(dense, self.weight.detach(), softness, structure)
        return dense

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in_features] to [..., out_features]."""
        if x.shape[-1:] != (self.in_features,):
            raise ShapeError(
                f"x has shape {tuple(x.shape)}; its last size must be {self.in_features}, the "
                "layer's in_features"
            )
        bias, mixed = self.bias, is_autocast(x)
        if self.softness.item() > 0.0:
            used = self.used_weight()
            if mixed:
                x, used, bias = autocast(x, used, bias, device=x.device.type)
            return _Soft.apply(x, self.weight, bias, used)  # type: ignore[no-any-return, no-untyped-call]
        values, structure = self.pack()
        if mixed:
            x, values, bias = autocast(x, values, bias, device=x.device.type)
        return _Masked.apply(x, self.weight, bias, values, structure, self)  # type: ignore[no-any-return, no-untyped-call]

    def input_gradient(self, g: Tensor, values: Tensor, structure: Structure) -> Tensor:
        """DX [..., in_features] of dY [..., out_features]."""
        transposed = self._transposed if structure.indices is self.indices else None
        return autograd.run_spmm_t(g, values, structure, transposed)

    def weight_gradient(self, g: Tensor, x: Tensor, structure: Structure) -> Tensor:
        """DW [out_features, in_features] of dY [batch, out_features] and x [batch, in_features]."""
        if self.gradient == "kept":
            kept: Tensor = backend.scatter(backend.sddmm(g, x, structure), structure)
            return kept
        return g.t() @ x

    def to_sparse(self) -> SparseLinear:
        """The `SparseLinear` of the same function, with copies of the values that it uses."""
        with torch.no_grad():
            values, structure = self.pack()
        weight = SparseWeight(values.clone(), structure, self.pattern)
        layer = SparseLinear.of_parts(weight, copy_parameter(self.bias))
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """The line that `print(model)` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, pattern={self.pattern}, moving={self.moving}"
        )

    def _pick(self, weight: Tensor) -> tuple[Tensor, Structure]:
        """The largest magnitudes, and where they stand."""
        if isinstance(self.pattern, NM):
            return select_nm(weight, self.pattern)
        mask = magnitude_mask(weight, self.pattern)
        structure = backend.encode(mask, self.pattern.panel, *group_of(self.pattern))
        return backend.gather(weight, structure), structure

    def _hold(self, structure: Structure, pattern: Pattern) -> None:
        # New buffers, never written into: a backward pass that waits still has its own.
        if getattr(self, "pattern", None) != pattern or self._layout != structure.layout:
            self.pattern = pattern
            self._layout: Layout = structure.layout
            self.descriptor = describe(pattern, structure.layout)
        self.indices, self.indptr = structure.indices, structure.indptr
        self._transposed: Transposed | None = None
        if not self.moving and structure.layout.vector == 1:
            self._transposed = backend.transpose(structure)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take over the structure that was saved, which may keep another number of entries."""
        if prefix + "descriptor" in state_dict:
            given = {name: state_dict.get(prefix + name) for name in _STRUCTURE}
            where = f"{prefix}* of the state dict"
            try:
                numbers = given["descriptor"].tolist()  # type: ignore[union-attr]
                pattern = pattern_of(numbers)
                rows, cols, vector, block_cols = numbers[1:5]
                layout = Layout(rows, cols, vector, block_cols, *group_of(pattern))
                backend.validate(Structure(layout, given["indices"], given["indptr"]))
            except (AttributeError, TypeError, ValueError) as error:
                raise StructureError(
                    f"{where}: {error}; load what was saved from this layer"
                ) from None
            self._check_rest(state_dict, prefix, layout)
            indices, indptr = (
                None if t is None else t.clone() for t in (given["indices"], given["indptr"])
            )
            self._hold(Structure(layout, indices, indptr), pattern)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _check_rest(self, state_dict: Mapping[str, Any], prefix: str, layout: Layout) -> None:
        where = f"{prefix}* of the state dict"
        if (layout.rows, layout.cols) != (self.out_features, self.in_features):
            raise StructureError(
                f"{where} holds a weight of {layout.rows} x {layout.cols}, the layer's is "
                f"{self.out_features} x {self.in_features}; build the model that was saved"
            )
        for name, own in (("weight", self.weight), ("bias", self.bias)):
            found = state_dict.get(prefix + name)
            if isinstance(found, Tensor) and own is not None and found.shape != own.shape:
                raise StructureError(
                    f"{where}: {name} has shape {tuple(found.shape)}, the layer's "
                    f"{tuple(own.shape)}; build the model that was saved"
                )
        found = state_dict.get(prefix + "softness")
        if isinstance(found, Tensor) and not (found.numel() == 1 and 0.0 <= found.item() <= 1.0):
            raise StructureError(
                f"{where}: softness is {found.tolist()!r:.80}; a number in [0, 1] is needed: load "
                "what was saved from this layer"
            )


class _Masked(Function):
    """The products on the kept entries; the gradients are the layer's."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        values: Tensor,
        structure: Structure,
        layer: MaskedLinear,
    ) -> Tensor:
        needs = ctx.needs_input_grad
        # The indices too: if somebody writes into them before the backward pass, autograd refuses.
        ctx.save_for_backward(
            x if needs[1] else None, values if needs[0] else None, structure.indices
        )
        ctx.structure, ctx.layer = structure, layer
        return autograd.run_spmm(x, values, structure, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, values, _ = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        structure, layer = ctx.structure, ctx.layer
        flat = autograd.flatten(g)
        return (
            layer.input_gradient(g, values, structure) if need_x else None,
            layer.weight_gradient(flat, autograd.flatten(x), structure) if need_weight else None,
            flat.sum(0) if need_bias else None,
            None,
            None,
            None,
        )


class _Soft(Function):
    """Dense products with the softly masked weight; its gradient goes straight to the master."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, used: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, used)
        return F.linear(x, used.to(x.dtype), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, used = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        flat = autograd.flatten(g)
        return (
            g @ used.to(g.dtype) if need_x else None,
            flat.t() @ autograd.flatten(x) if need_weight else None,
            flat.sum(0) if need_bias else None,
            None,
        )


__all__ = ["Gradient", "MaskedLinear"]
