"""SubsetLinear: a dense weight of which chosen entries train.

    Y = X W^T + b,    dX = dY W,    dvalues = (dY^T X) at M

Forward pass and input gradient are dense; the gradient, and so the optimizer's state, exist at the
entries of the mask M alone. The trained values are a `SparseWeight`, written into W when they have
changed. A convolution is the same with another product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard
from weakref import WeakSet, ref

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.optim.optimizer import register_optimizer_step_post_hook

from gossamer import backend
from gossamer.arguments import check
from gossamer.errors import PatternError
from gossamer.nn.layers.base import copy_parameter
from gossamer.nn.layers.filters import matrix_of
from gossamer.nn.layers.products import ROWS, RowProduct, parts_of
from gossamer.ops.autocast import autocast, is_autocast
from gossamer.patterns import Unstructured
from gossamer.weight import SparseWeight
from gossamer.weight.checks import check_like

Written = tuple[Callable[[], Tensor | None], int]
"""The values that a weight has, and their version."""
_NEVER: Written = (lambda: None, -1)
_ALIVE: WeakSet[SubsetLinear] = WeakSet()


class Subset(Function):
    """A dense product whose gradient for the weight exists at some entries."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        weight: Tensor,
        trained: SparseWeight,
        product: RowProduct,
    ) -> Tensor:
        """Y = X W^T + b."""
        need_x, need_values, *_ = ctx.needs_input_grad
        structure = trained.structure
        # Indices are saved too: autograd then detects that they were overwritten.
        ctx.save_for_backward(
            x if need_values else None, weight if need_x else None, structure.indices
        )
        ctx.structure, ctx.product, ctx.size = structure, product, x.shape
        return product.multiply_dense(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Return dX, the gradient of the values and that of the bias."""
        x, weight, _ = ctx.saved_tensors
        need_x, need_values, need_bias, *_ = ctx.needs_input_grad
        product: RowProduct = ctx.product
        flat = product.flat(grad_output)
        return (
            product.dense_input_gradient(grad_output, weight, ctx.size) if need_x else None,
            product.kept_gradient(flat, product.flat(x), ctx.structure) if need_values else None,
            product.bias_gradient(flat) if need_bias else None,
            None,
            None,
            None,
        )


class SubsetLinear(nn.Module):
    """A linear layer or convolution with a dense weight, of which the entries of a mask train.

    A new layer computes what the dense one does. After a step of any optimizer, and before a
    forward pass or a state dict, changed values are written into the weight; call `write` after a
    change through `.data`. Under torch.compile the layer breaks the graph.

    Args:
        weight: [out_features, in_features], float32, float64 or bfloat16; the layer keeps it, and
            it does not train.
        bias: [out_features], or None.
        mask: bool [out_features, in_features], True = trained.
        product: how the weight acts on an input; that of a linear layer, or of a convolution.

    Attributes:
        weight: W [out_features, in_features]; a buffer.
        trained: the values [nnz] that train, at `trained.values`, and their positions.

    Raises:
        ShapeError, DTypeError: the mask or the weight does not fit.

    Reference:
        Mukherjee et al. 2025, "Reinforcement Learning Finetunes Small Subnetworks in Large Language
        Models" (that such a subset suffices).

    Example:
        >>> dense = nn.Linear(4, 2)
        >>> layer = SubsetLinear.from_dense(dense, dense.weight > 0)
        >>> torch.equal(layer.weight, dense.weight)
        True
    """

    weight: Tensor
    bias: nn.Parameter | None
    _written: Written

    def __init__(
        self,
        weight: Tensor,
        bias: nn.Parameter | None,
        mask: Tensor,
        product: RowProduct = ROWS,
    ) -> None:
        super().__init__()
        check(SubsetLinear.__init__, locals())
        weight = weight.detach()
        self.trained = SparseWeight.from_dense(
            weight, _pattern_of(mask, weight), mask, transpose="none"
        )
        self.out_features, self.in_features = weight.shape
        self.product = product
        self.bias = bias
        self.register_buffer("weight", weight)
        self._keep()
        _ALIVE.add(self)

    @classmethod
    def from_dense(cls, dense: nn.Module, mask: Tensor) -> SubsetLinear:
        """Make a layer of an `nn.Linear`, a `Conv1D` or a convolution, whose weight is copied.

        Args:
            dense: the layer.
            mask: bool, of the shape of the weight as a matrix [out, in], or of a convolution's
                weight; True = trained.

        Raises:
            ShapeError, DTypeError: the mask or the layer does not fit.
        """
        check(SubsetLinear.from_dense, locals())
        weight, product = parts_of(dense)
        if not product.takes_rows and mask.dim() > 2:
            mask = matrix_of(mask)
        bias = copy_parameter(dense.bias)  # type: ignore[arg-type]
        return cls(weight.detach().clone(), bias, mask, product).train(dense.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear has
        """Map input [..., in_features] to [..., out_features]; a convolution, images to images."""
        y: Tensor = _run(self, input)
        return y

    @property
    def takes_rows(self) -> bool:
        """Whether the input is [..., in_features]."""
        return self.product.takes_rows

    @torch.no_grad()
    def write(self) -> None:
        """Write the values into the weight."""
        at = backend.coordinates(self.trained.structure)
        self.weight.view(-1).index_copy_(0, at, self.trained.values.to(self.weight.dtype))
        self._keep()

    @torch.no_grad()
    def set_mask(self, mask: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Train other entries from now on; they start as they are in the weight.

        Optimizer state stays at the entries that both masks train, and is 0 at new ones.

        Args:
            mask: bool [out_features, in_features], True = trained.
            optimizer: the optimizer of the values; needed if it has state already.

        Raises:
            ShapeError, StructureError, DTypeError: the mask does not fit; nothing changes.
        """
        check(SubsetLinear.set_mask, locals())
        pattern = _pattern_of(mask, self.weight)
        self._follow()
        self.trained.set_mask(mask, optimizer, pattern)
        self.trained.values.copy_(backend.gather(self.weight, self.trained.structure))
        self._keep()

    def to_dense(self) -> nn.Module:
        """Return an equivalent layer of torch, which trains as a whole; a copy."""
        self._follow()
        layer = self.product.dense_layer(
            nn.Parameter(self.weight.clone()), copy_parameter(self.bias)
        )
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """Return the line that `print(model)` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}{self.product}"
        )

    def _keep(self) -> None:
        """Remember which values the weight has."""
        values = self.trained.values
        self._written = (ref(values), -1 if values.is_inference() else values._version)

    def _follow(self) -> None:
        """Write the values if they have changed."""
        values, (known, version) = self.trained.values, self._written
        same = known() is values and not values.is_inference() and version == values._version
        if not (same or self.weight.is_meta):
            self.write()

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._follow()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Check the positions before torch loads the weight, because it loads parents first."""
        self.trained.check_state(state_dict, prefix + "trained.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._written = _NEVER

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_written"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._written = _NEVER
        _ALIVE.add(self)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _run(layer: SubsetLinear, given: Tensor) -> Tensor:
    layer._follow()
    product, trained = layer.product, layer.trained
    product.check_fits(given, layer.weight)
    x, values, bias, weight = product.enter(given), trained.values, layer.bias, layer.weight
    if is_autocast(x):
        device = x.device.type
        x, values, bias, weight = autocast(x, values, bias, weight, device=device)
    y: Tensor = Subset.apply(x, values, bias, weight, trained, product)  # type: ignore[no-untyped-call]
    return product.leave(y, given)


def _pattern_of(mask: Tensor, weight: Tensor) -> Unstructured:
    check_like(mask, "mask", weight.shape)
    if mask.dtype != torch.bool or not bool(mask.any()):
        raise PatternError(
            f"SubsetLinear got a mask of {mask.dtype} with {int((mask != 0).sum())} entries that "
            "train; a bool mask with one at least is needed: leave the layer out otherwise"
        )
    return Unstructured.keeping(int(mask.sum()), mask.numel())


def _follow_all(*_: object) -> None:
    for layer in list(_ALIVE):
        layer._follow()


register_optimizer_step_post_hook(_follow_all)


def has_subset(module: nn.Module) -> TypeGuard[SubsetLinear]:
    """Return whether a module is a `SubsetLinear`."""
    return isinstance(module, SubsetLinear)


__all__ = ["SubsetLinear", "has_subset"]
