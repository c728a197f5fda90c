"""Sparsifiers of activations and of their gradients, chosen separately, with torch.compile.

y keeps the largest magnitudes of x that a pattern allows, dL/dx those of dL/dy that another one
allows. What multiplies y afterwards is dense: this is for training with N:M activations and
gradients, and for studies of what that costs, not a faster product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gossamer import backend
from gossamer.arguments import check
from gossamer.backend import check_array
from gossamer.backend.arrays import FLOATING, FLOATS
from gossamer.errors import PatternError, ShapeError
from gossamer.masks import magnitude_mask, select_nm
from gossamer.patterns import NM, Nonzeros, Pattern, parse_pattern

_LIBRARY = torch.library.Library("gossamer", "FRAGMENT")  # type: ignore[no-untyped-call]
_define: Callable[[str], object] = _LIBRARY.define
_define("largest(Tensor x, str pattern, int dim) -> Tensor")
_define("sparsified(Tensor x, str? forward, str? backward, int dim) -> Tensor")

Given = str | Pattern | None


def sparsify_tensor(
    x: Tensor,
    forward: Given = None,
    backward: Given = None,
    straight_through: bool = True,
    dim: int = -1,
) -> Tensor:
    """Keep the largest magnitudes of a tensor, and those of its gradient.

    The matrix of a pattern has one row for each position of the other dimensions: with `dim=-1`,
    "2:4" keeps 2 of every 4 consecutive features of a token.

    Args:
        x: float16, bfloat16, float32 or float64, at least one dimension.
        forward: the pattern of what is kept of x, or its text; None keeps all.
        backward: the pattern of what is kept of the gradient; None keeps all.
        straight_through: whether entries that `forward` drops have a gradient too.
        dim: the dimension along which a pattern has its columns.

    Returns:
        A tensor like x, with zeros where an entry is dropped.

    Raises:
        PatternError: the shape does not fit a pattern, or the text of one does not describe it.
        ShapeError: x has no such dimension.

    Reference:
        Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons"
        (straight-through); Ivanov et al. 2023, "STen" (a sparsifier for each of both directions).

    Example:
        >>> x = torch.tensor([1.0, -3.0, 2.0, 0.5], requires_grad=True)
        >>> y = sparsify_tensor(x, "2:4", backward="1:4")
        >>> y.tolist()
        [0.0, -3.0, 2.0, 0.0]
        >>> y.backward(torch.tensor([4.0, 3.0, 2.0, 1.0]))
        >>> x.grad.tolist()
        [4.0, 0.0, 0.0, 0.0]
    """
    check(sparsify_tensor, locals())
    first, second = (text_of(pattern, "sparsify_tensor") for pattern in (forward, backward))
    return sparsify_by_texts(x, first, second, straight_through, dim)


def sparsify_by_texts(
    x: Tensor, forward: str | None, backward: str | None, straight_through: bool, dim: int
) -> Tensor:
    """Do what `sparsify_tensor` does, by texts that `text_of` has checked; a compiler sees in."""
    if not -x.dim() <= dim < x.dim():
        raise ShapeError(f"sparsify_tensor got dim={dim} of a tensor of {x.dim()} dimensions")
    if straight_through or forward is None:
        y: Tensor = torch.ops.gossamer.sparsified(x, forward, backward, dim)
        return y
    kept = torch.ops.gossamer.largest(x.detach(), forward, dim)
    # The gradient is pruned first: it comes from behind.
    passed: Tensor = torch.ops.gossamer.sparsified(
        torch.where(kept, x, torch.zeros_like(x)), None, backward, dim
    )
    return passed


def sparsified_op(
    op: Callable[..., Tensor],
    forward: Given = None,
    backward: Given = None,
    straight_through: bool = True,
    dim: int = -1,
) -> Callable[..., Tensor]:
    """Return an operation whose result, and whose result's gradient, are made sparse.

    Args:
        op: a function or module that returns a tensor.
        forward: see `sparsify_tensor`.
        backward: see `sparsify_tensor`.
        straight_through: see `sparsify_tensor`.
        dim: see `sparsify_tensor`.

    Example:
        >>> relu = sparsified_op(torch.relu, "1:2")
        >>> relu(torch.tensor([1.0, 2.0, -1.0, 3.0])).tolist()
        [0.0, 2.0, 0.0, 3.0]
    """
    check(sparsified_op, locals())
    first, second = (text_of(pattern, "sparsified_op") for pattern in (forward, backward))

    def sparse(*args: Any, **kwargs: Any) -> Tensor:
        return sparsify_by_texts(op(*args, **kwargs), first, second, straight_through, dim)

    return sparse


def text_of(pattern: Given, who: str) -> str | None:
    """Return the text of a pattern, by which traced operators name it.

    Raises:
        PatternError: the text describes another pattern, or it has no masks of its own.
    """
    if pattern is None:
        return None
    pattern = parse_pattern(pattern)
    if isinstance(pattern, Nonzeros):
        pattern.refuse("sparser tensor", f"{who} takes patterns such as 2:4 or 90%")
    if parse_pattern(str(pattern)) != pattern:
        raise PatternError(
            f"{who} got pattern {pattern}, whose text describes another one: its `parse` must read "
            "what `__str__` writes"
        )
    return str(pattern)


def _largest(x: Tensor, pattern: str, dim: int) -> Tensor:
    rows = x.detach().movedim(dim, -1)
    matrix = rows.reshape(-1, rows.shape[-1])
    parsed = parse_pattern(pattern)
    check_array(matrix, "sparsify_tensor: x", rank=2, dtypes=FLOATING)
    if isinstance(parsed, NM) and matrix.dtype in FLOATS and matrix.device.type == "cpu":
        kept = backend.mask(select_nm(matrix, parsed)[1])
    else:
        kept = magnitude_mask(matrix, parsed)
    return kept.reshape(rows.shape).movedim(-1, dim).contiguous()


def _sparsified(x: Tensor, forward: str | None, backward: str | None, dim: int) -> Tensor:
    if forward is None:
        return x.clone()
    # Not a product: NaN times 0 is NaN.
    return torch.where(_largest(x, forward, dim), x, torch.zeros_like(x)).contiguous()


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, ctx.pattern, ctx.dim = inputs


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.pattern is not None:
        kept = torch.ops.gossamer.largest(grad.detach(), ctx.pattern, ctx.dim)
        grad = torch.where(kept, grad, torch.zeros_like(grad))
    return grad, None, None, None


def _like(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _mask_like(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty(x.shape, dtype=torch.bool, device=x.device)


def _register() -> None:
    impl: Callable[..., object] = _LIBRARY.impl
    for name, kernel, fake in (
        ("largest", _largest, _mask_like),
        ("sparsified", _sparsified, _like),
    ):
        impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"gossamer::{name}", fake, lib=_LIBRARY)
    torch.library.register_autograd(
        "gossamer::sparsified", _backward, setup_context=_context, lib=_LIBRARY
    )


_register()

__all__ = ["Given", "sparsified_op", "sparsify_by_texts", "sparsify_tensor", "text_of"]
