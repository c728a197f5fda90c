"""MaskedLinear: a layer that trains a dense weight and multiplies by its masked part.

    Y = X W~^T + b,  W~ = M * W,  dX = dY W~,  dW = dY^T X

The products with W~ run on the sparse kernels. The gradient goes to the whole weight, straight
through the mask (Bengio et al. 2013), or to the kept entries only. Memory is that of a dense layer,
and dW may be a dense product: `SparseLinear` is the layer that stores the kept entries only.
A convolution is the same with another product (`products`), its weight the matrix of `SparseConv`.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.arguments import check
from gossamer.backend import Layout, Structure, Transposed
from gossamer.masks import check_mask, magnitude_mask
from gossamer.masks.n_of_m import add_pruned_
from gossamer.nn.layers import compiled
from gossamer.nn.layers.base import MaskedLayer, copy_parameter, whole
from gossamer.nn.layers.known_numbers import number_in
from gossamer.nn.layers.masked_state import STRUCTURE, describe, nbytes, saved_mask, select
from gossamer.nn.layers.numbered import number
from gossamer.nn.layers.products import ROWS, RowProduct, parts_of
from gossamer.nn.layers.sparse import SparseLayer
from gossamer.nn.layers.straight_through import Masked, Parameters, SoftlyMasked, Wanted
from gossamer.ops.autocast import autocast, is_autocast
from gossamer.ops.recording import SYMBOLIC, as_leaf, refuse_recorders
from gossamer.patterns import Pattern, parse_pattern
from gossamer.weight import SparseWeight, check_dense
from gossamer.weight.checks import check_like
from gossamer.weight.guard import Guard

Gradient = Literal["dense", "kept"]


class MaskedLinear(MaskedLayer):
    """A linear layer or convolution with a dense, trained weight under a mask.

    The mask is selected from the weight in every forward pass, or fixed until `set_mask` changes
    it. A subclass may override `pack` (the values of the forward product), `input_gradient` and
    `weight_gradient`.

    Args:
        weight: [out_features, in_features]; the Parameter that is trained.
        bias: [out_features], or None.
        pattern: pattern of the mask.
        reselect_each_forward: select the mask by the weight's magnitudes in every forward pass;
            False keeps a fixed mask.
        gradient: "dense" gives every entry the gradient dY^T X (straight through); "kept" gives it
            to the kept entries, and 0 to the others.
        target: the pattern at the end of training; None is `pattern`.
        product: how the weight acts on an input; that of a linear layer, or an `ImageProduct`.

    Attributes:
        masked_weight_share: factor of the masked entries in the forward pass, in [0, 1]; a 0-d
            buffer. 0 is a hard mask, above 0 the products are dense, and 1 makes the layer dense,
            see `set_dense`.

    Raises:
        PatternError: the sizes do not fit the pattern.
        DTypeError, DeviceError: the kernels do not support the weight's dtype or device.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    masked_weight_share: Tensor
    indices: Tensor
    indptr: Tensor | None
    descriptor: Tensor
    _described: tuple[Pattern, Layout, int | None]

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        pattern: str | Pattern,
        reselect_each_forward: bool = True,
        gradient: Gradient = "dense",
        target: str | Pattern | None = None,
        product: RowProduct = ROWS,
    ) -> None:
        super().__init__()
        check(MaskedLinear.__init__, locals())
        check_dense(weight)
        self.product = product
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.bias = bias
        self.reselect_each_forward = reselect_each_forward
        self.gradient: Gradient = gradient
        self.register_buffer("masked_weight_share", torch.zeros((), dtype=torch.float64))
        for name in STRUCTURE:
            self.register_buffer(name, None)
        self._guard = Guard(self)
        self.number = number(self)
        self.set_pattern(pattern)
        self.target = self._pattern if target is None else parse_pattern(target)

    @classmethod
    def from_dense(
        cls, linear: nn.Module, pattern: str | Pattern, *args: Any, **kwargs: Any
    ) -> MaskedLinear:
        """Make a layer from a dense one, sharing the Parameters that `parts_of` does not copy."""
        weight, product = parts_of(linear)
        kwargs["product"] = product
        return cls(weight, linear.bias, pattern, *args, **kwargs)  # type: ignore[arg-type]

    @property
    def structure(self) -> Structure:
        """The positions of the kept entries, from the last forward pass or `set_mask`."""
        if self.is_dense_now:
            kept = torch.ones(self.weight.shape, dtype=torch.bool)
            return backend.encode(kept, self.pattern.panel, *self.pattern.group)
        return self._fixed

    @property
    def pattern(self) -> Pattern:
        """The pattern that the mask obeys now; while the layer is dense, it keeps every entry."""
        return whole(self._target) if self.is_dense_now else self._pattern

    @property
    def target(self) -> Pattern:
        """The pattern that the mask obeys at the end of training."""
        return self._target

    @target.setter
    def target(self, pattern: Pattern) -> None:
        self._target = pattern

    @property
    def entries(self) -> nn.Parameter:
        """The dense weight [out_features, in_features]."""
        return self.weight

    @property
    def is_dense_now(self) -> bool:
        """Whether the forward pass uses the whole weight, see `set_dense`."""
        return number_in(self, "masked_weight_share") == 1.0

    @property
    def nnz(self) -> int:
        """The number of kept entries."""
        return self.weight.numel() if self.is_dense_now else self._fixed.nnz

    @property
    def used_entries(self) -> int:
        """The number of entries that the forward pass uses: all of them under a soft mask."""
        everything = number_in(self, "masked_weight_share") > 0.0
        return self.weight.numel() if everything else self._fixed.nnz

    @property
    def structure_nbytes(self) -> int:
        """Bytes of the buffers and of the transpose."""
        own = sum(buffer.nbytes for buffer in self.buffers(recurse=False))
        return own + nbytes(self._transposed)

    def kept_values(self) -> Tensor:
        """Return the kept entries [nnz] of the dense weight; detached."""
        values: Tensor = backend.gather(self.weight.detach(), self.structure)
        return values

    def set_dense(self) -> None:
        """Use the whole weight until `set_mask` or `set_pattern` sets a mask.

        Meanwhile `pattern` keeps every entry, and `target` does not change.
        """
        self.masked_weight_share.fill_(1.0)

    def set_pattern(self, pattern: str | Pattern) -> None:
        """Change the pattern and select its mask by magnitude; this ends a dense phase.

        Raises:
            PatternError: the sizes do not fit the pattern; the layer does not change.
        """
        pattern = parse_pattern(pattern)
        who = type(self).__name__
        self.product.check_pattern(pattern, self.out_features, self.in_features, who)
        self.set_mask(magnitude_mask(self.weight.detach(), pattern), pattern)

    def set_mask(self, mask: Tensor, pattern: Pattern | None = None) -> None:
        """Set a fixed mask; this ends a dense phase.

        Values outside the mask do not change.

        Args:
            mask: bool [out_features, in_features], True = kept.
            pattern: the pattern of the mask; None is the present one.

        Raises:
            ShapeError, StructureError: the mask has another shape or pattern; the layer does not
                change.
        """
        check(MaskedLinear.set_mask, locals())
        pattern = pattern or self._pattern
        check_like(mask, "mask", self.weight.shape)
        check_mask(mask, pattern)
        self._fix_mask(backend.encode(mask, pattern.panel, *pattern.group), pattern)
        if self.is_dense_now:
            self.masked_weight_share.zero_()

    def pack(self) -> tuple[Tensor, Structure]:
        """Return the kept values [nnz] that the forward pass multiplies by, and their structure."""
        weight = self.weight.detach()
        if not self.reselect_each_forward:
            return backend.gather(weight, self._fixed), self._fixed
        values, structure = select(weight, self._pattern)
        self._fix_mask(structure, self._pattern)
        return values, structure

    def used_weight(self) -> Tensor:
        """Return the dense matrix [out_features, in_features] that the forward pass multiplies by.

        It is the weight itself while the layer is dense. Under a mask it is a detached copy:
        the weight's gradient follows the layer's own rule.
        """
        share = number_in(self, "masked_weight_share")
        if share == 1.0:
            return self.weight
        with torch.no_grad():
            values, structure = self.pack()
            dense: Tensor = backend.scatter(values, structure)
            return add_pruned_(dense, self.weight.detach(), share, structure) if share else dense

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear has
        """Map input [..., in_features] to [..., out_features]; a convolution, images to images."""
        if type(input) is SYMBOLIC:
            return as_leaf(self, input)  # type: ignore[no-any-return]
        if torch.compiler.is_compiling():
            return compiled.masked(self, input)
        self.check_input(input)
        product, share = self.product, number_in(self, "masked_weight_share")
        x, bias, mixed = product.enter(input), self.bias, is_autocast(input)
        if share == 1.0:
            y = product.dense(x, self.weight, bias)
        elif share > 0.0:
            used = self.used_weight()
            if mixed:
                x, used, bias = autocast(x, used, bias, device=x.device.type)
            y = SoftlyMasked.apply(x, self.weight, bias, used, product)  # type: ignore[no-untyped-call]
        else:
            values, structure = self.pack()
            if mixed:
                x, values, bias = autocast(x, values, bias, device=x.device.type)
            y = Masked.apply(x, bias, values, structure, self, *self.trained())  # type: ignore[no-untyped-call]
        return product.leave(y, input)

    def check_input(self, x: Tensor) -> None:
        """Raise ShapeError unless x is an input; GossamerError for a recorder of it."""
        refuse_recorders(self, "use to_sparse(), or the model that recipe.finish gives")
        self.check_fits(x)

    def check_fits(self, x: Tensor) -> None:
        """Raise ShapeError unless x is an input of the layer; DTypeError for another dtype."""
        self.product.check_fits(x, self.weight)

    def trained(self) -> Parameters:
        """The Parameters that decide the weight: the dense weight, and what else a subclass has."""
        return (self.weight,)

    def gradients(
        self,
        grad_output: Tensor,
        x: Tensor,
        parameters: Parameters,
        values: Tensor,
        structure: Structure,
        wanted: Wanted,
        size: torch.Size,
    ) -> tuple[Tensor | None, tuple[Tensor | None, ...], Tensor | None]:
        """Return the gradients of the input, of `trained()`, and of the bias, where wanted.

        x, which has `size`, the parameters, and values [nnz] at the positions of a structure are
        those of the forward pass.
        """
        need_x, need_parameters, need_bias = wanted
        flat = self.product.flat(grad_output)
        of_parameters: tuple[Tensor | None, ...] = (None,) * len(self.trained())
        if need_parameters:
            of_parameters = self.parameter_gradients(
                flat, self.product.flat(x), structure, parameters
            )
        return (
            self.input_gradient(grad_output, values, structure, size) if need_x else None,
            of_parameters,
            self.product.bias_gradient(flat) if need_bias else None,
        )

    def parameter_gradients(
        self, grad_output: Tensor, x: Tensor, structure: Structure, parameters: Parameters
    ) -> Parameters:
        """Return the gradients of `trained()` for dY [batch, out] and x [batch, in], or images."""
        return (self.weight_gradient(grad_output, x, structure),)

    def input_gradient(
        self, grad_output: Tensor, values: Tensor, structure: Structure, size: torch.Size
    ) -> Tensor:
        """Return dX of a size for grad_output dY."""
        transposed = self._transposed if structure.indices is self.indices else None
        return self.product.input_gradient(grad_output, values, structure, transposed, size)

    def weight_gradient(self, grad_output: Tensor, x: Tensor, structure: Structure) -> Tensor:
        """Return dW [out_features, in_features] for dY and x as `parameter_gradients` has them."""
        if self.gradient == "kept":
            at_kept = self.product.kept_gradient(grad_output, x, structure)
            kept: Tensor = backend.scatter(at_kept, structure)
            return kept
        return self.product.gradient(grad_output, x)

    def dense_gradient(self, x: Tensor, grad_output: Tensor, begin: int, end: int) -> Tensor:
        """Return rows [begin, end) of dW, kept or not, as `SparseLayer` does."""
        return self.product.gradient_rows(x, grad_output, begin, end)

    def to_sparse(self, pattern: Pattern | None = None) -> SparseLayer:
        """Return an equivalent layer that stores kept entries only, with copies of the used values.

        Args:
            pattern: pattern to prune to by magnitude if the layer is dense now; None is its target.
        """
        if self.is_dense_now:
            self.set_pattern(pattern or self.target)
        with torch.no_grad():
            values, structure = self.pack()
        weight = SparseWeight(values.clone(), copy.deepcopy(structure), self._pattern)
        return self.product.sparse_layer(weight, copy_parameter(self.bias)).train(self.training)

    @property
    def takes_rows(self) -> bool:
        """Whether the input is [..., in_features]."""
        return self.product.takes_rows

    def stands_for(self, dense: nn.Module) -> bool:
        """Whether a dense layer, or another with a mask, computes the same with equal weights."""
        return self.product.stands_for(getattr(dense, "product", dense))

    def to_dense(self) -> Any:
        """Return an equivalent layer of torch; a copy."""
        weight = nn.Parameter(self.used_weight().detach().clone(), self.weight.requires_grad)
        layer = self.product.dense_layer(weight, copy_parameter(self.bias))
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """Return the line that `print(model)` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, pattern={self.pattern}, "
            f"reselect_each_forward={self.reselect_each_forward}{self.product}"
        )

    @property
    def _fixed(self) -> Structure:
        """The structure of the last selected or set mask, also while the layer is dense.

        Raises:
            StructureError: the buffers of a fixed mask were written over.
        """
        structure, guard = Structure(self._layout, self.indices, self.indptr), self._guard
        if not self.reselect_each_forward and not guard.holds(*structure[1:]):
            advice = "set the mask again with set_mask or set_pattern"
            guard.check(structure, "indices", advice, *structure[1:])
            describe(self, anew=True)  # averaged like the others
        return structure

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # A layer that an earlier version has written has none.
        self.__dict__.setdefault("_guard", Guard(self)).own(self)
        self.__dict__.setdefault("product", ROWS)
        self.number = number(self)  # a copy has its own

    def _fix_mask(self, structure: Structure, pattern: Pattern) -> None:
        # New buffers, because a pending backward pass may still use the old ones.
        self._pattern: Pattern = pattern
        self._layout: Layout = structure.layout
        self.indices, self.indptr = structure.indices, structure.indptr
        # A mask that is selected again in each forward pass needs no checksum.
        self._guard.keep(structure, *structure[1:], checksum=not self.reselect_each_forward)
        describe(self)
        self._transposed: Transposed | None = None
        if not self.reselect_each_forward and structure.layout.vector == 1:
            self._transposed = backend.transpose(structure)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Load the saved structure, which may keep another number of entries."""
        if saved := saved_mask(self, state_dict, prefix):
            self._fix_mask(*saved)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if saved:
            describe(self, anew=True)


__all__ = ["Gradient", "MaskedLinear"]
