"""torch.ops.gossamer.capture: what `Capture` does in the graphs of torch.compile.

A graph cannot hold a hook on a tensor, so it holds an operator instead that returns the output of a
layer unchanged. Its backward pass sees the output's gradient and finds the capture by its number.
Whether a step is wanted is asked while the graph runs, so one graph serves every step. The graph
may write into x and the gradient afterwards, so that copies are kept, in wanted steps alone.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gossamer.recipes.base.capture import Capture

__all__ = ["captured", "number"]

_LIBRARY = torch.library.Library("gossamer", "FRAGMENT")  # type: ignore[no-untyped-call]
_define: Callable[[str], object] = _LIBRARY.define
_define("capture(Tensor y, Tensor x, int capture) -> Tensor")
_define("capture_backward(Tensor grad_output, Tensor x, int capture) -> Tensor")
_CAPTURES: WeakValueDictionary[int, Capture] = WeakValueDictionary()
_NUMBERS = count()


def number(capture: Capture) -> int:
    """Return a new number by which the operator finds a capture while it lives."""
    found = next(_NUMBERS)
    _CAPTURES[found] = capture
    return found


def captured(y: Tensor, x: Tensor, capture: int) -> Tensor:
    """Return y, whose gradient will be captured together with x."""
    out: Tensor = torch.ops.gossamer.capture(y, x, capture)
    return out


def _forward(y: Tensor, x: Tensor, capture: int) -> Tensor:
    own = _CAPTURES.get(capture)
    if own is not None and own.wanted():
        own.begin()
    return y.clone()


def _backward(grad_output: Tensor, x: Tensor, capture: int) -> Tensor:
    own = _CAPTURES.get(capture)
    if own is not None and own.wanted():
        own.coming.append((x.clone(), grad_output.clone()))
    return grad_output.clone()


def _like(first: Tensor, x: Tensor, capture: int) -> Tensor:
    return torch.empty_like(first)


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, x, ctx.capture = inputs
    ctx.save_for_backward(x)


def _gradient(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    return torch.ops.gossamer.capture_backward(grad_output, x, ctx.capture), None, None


def _register() -> None:
    impl: Callable[..., object] = _LIBRARY.impl
    for name, kernel in (("capture", _forward), ("capture_backward", _backward)):
        impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"gossamer::{name}", _like, lib=_LIBRARY)
    torch.library.register_autograd(
        "gossamer::capture", _gradient, setup_context=_context, lib=_LIBRARY
    )


_register()
