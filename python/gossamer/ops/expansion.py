"""torch.ops.gossamer.{expand, take_kept}: a sparse weight as a dense matrix, and back.

Each is the gradient of the other, so both have all derivatives. For layers whose kernels read rows
of a weight: the rows are written once a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gossamer import backend
from gossamer.backend import Layout, Structure
from gossamer.errors import DTypeError
from gossamer.weight import SparseWeight
from gossamer.weight.guard import check_written
from gossamer.weight.sharding import gathered

_LIBRARY = torch.library.Library("gossamer", "FRAGMENT")  # type: ignore[no-untyped-call]
_define: Callable[[str], object] = _LIBRARY.define
_STRUCTURE = "Tensor indices, Tensor? indptr, int[] layout"
_define(f"expand(Tensor values, {_STRUCTURE}) -> Tensor")
_define(f"take_kept(Tensor dense, {_STRUCTURE}) -> Tensor")


def expand(weight: SparseWeight) -> Tensor:
    """Return the dense matrix [rows, cols] of a weight, differentiable in its values.

    Raises:
        DTypeError: it is no SparseWeight.

    Example:
        >>> import torch
        >>> weight = SparseWeight.from_dense(torch.tensor([[1.0, 2.0, 0.0, 3.0]]), "2:4")
        >>> expand(weight).tolist()
        [[0.0, 2.0, 0.0, 3.0]]
    """
    if not isinstance(weight, SparseWeight):
        raise DTypeError(f"expand got a {type(weight).__name__}; pass a SparseWeight")
    dense: Tensor = torch.ops.gossamer.expand(
        gathered(weight.values), weight.indices, weight.indptr, weight.layout_ints
    )
    return dense


def _structure(indices: Tensor, indptr: Tensor | None, layout: list[int]) -> Structure:
    check_written(indices)
    return Structure(Layout(*layout), indices, indptr)


def _expand(values: Tensor, *structure: Any) -> Tensor:
    dense: Tensor = backend.scatter(values.detach().contiguous(), _structure(*structure))
    return dense


def _take_kept(dense: Tensor, *structure: Any) -> Tensor:
    kept: Tensor = backend.gather(dense.detach().contiguous(), _structure(*structure))
    return kept


def _expand_fake(
    values: Tensor, indices: Tensor, indptr: Tensor | None, layout: list[int]
) -> Tensor:
    return values.new_empty(layout[0], layout[1])


def _take_kept_fake(
    dense: Tensor, indices: Tensor, indptr: Tensor | None, layout: list[int]
) -> Tensor:
    return dense.new_empty(indices.shape[0] * layout[2])  # each index stores `vector` values


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, indices, indptr, ctx.layout = inputs
    ctx.save_for_backward(indices, indptr)


def _register() -> None:
    def rule(other: str) -> Callable[..., tuple[Tensor | None, ...]]:
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            op = getattr(torch.ops.gossamer, other)
            return op(grad, *ctx.saved_tensors, ctx.layout), None, None, None

        return backward

    impl: Callable[..., object] = _LIBRARY.impl
    for name, kernel, fake, other in (
        ("expand", _expand, _expand_fake, "take_kept"),
        ("take_kept", _take_kept, _take_kept_fake, "expand"),
    ):
        op = f"gossamer::{name}"
        impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(op, fake, lib=_LIBRARY)
        torch.library.register_autograd(op, rule(other), setup_context=_context, lib=_LIBRARY)


_register()

__all__ = ["expand"]
