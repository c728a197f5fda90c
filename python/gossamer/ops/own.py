"""Kernels that were registered for a pattern, in the place of the kernels of panels.

See `gossamer.patterns.register_operator`. What they return is checked; what they raise is named.
Where more than one is registered, the gradients of spmm and spmm_t are the other verbs' kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from gossamer.errors import PatternError
from gossamer.ops.recording import differentiating_forward, transforming
from gossamer.patterns import operator_of
from gossamer.weight import SparseWeight

__all__ = ["has_own", "own_kernel", "with_own_gradients"]


def has_own(weight: object) -> bool:
    """Return whether any kernel is registered for a weight's pattern."""
    return isinstance(weight, SparseWeight) and any(
        operator_of(weight.pattern, verb) for verb in ("spmm", "spmm_t", "sddmm")
    )


def own_kernel(verb: str, weight: object) -> Callable[..., Any] | None:
    """Return the kernel that is registered for a weight's pattern; None runs those of panels.

    Args:
        verb: "spmm", "spmm_t" or "sddmm".
        weight: the weight; anything else has no kernel.
    """
    if not isinstance(weight, SparseWeight):
        return None  # the caller refuses it
    function = operator_of(weight.pattern, verb)
    if function is None:
        return None

    def run(*args: Any) -> Any:
        inputs = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in args]
        who = f"the {verb} that is registered for pattern {weight.pattern}"
        if torch.compiler.is_compiling():  # what it raises there is the compiler's
            y = function(*inputs, weight)
        else:
            try:
                y = function(*inputs, weight)
            except Exception as error:
                text = f"{who} raised {type(error).__name__}: {error!s:.300}"
                raise PatternError(text) from error
        last = {"spmm": weight.shape[0], "spmm_t": weight.shape[1], "sddmm": weight.nnz}[verb]
        leading = () if verb == "sddmm" else tuple(inputs[0].shape[:-1])
        given = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        if given != (*leading, last):
            raise PatternError(f"{who} returned {given}; it must return {(*leading, last)}")
        if y.dtype != inputs[0].dtype and not torch.is_autocast_enabled(y.device.type):
            raise PatternError(f"{who} returned {y.dtype}; its input is {inputs[0].dtype}")
        return y if inputs[0] is args[0] else y.detach().numpy()

    return run


def with_own_gradients(
    verb: str,
    weight: SparseWeight,
    left: Any,
    run: Callable[[Any], Any],
    grad_left: Callable[[Tensor, SparseWeight], Tensor],
    sddmm: Callable[[Tensor, Tensor, SparseWeight], Tensor],
) -> Any:
    """Compute spmm or spmm_t of a weight; its gradients are registered kernels where there are any.

    Autograd sees into the forward kernel instead if it alone is registered; also under a compiler,
    a transform or autocast, and for a double-pruned weight, whose gradient is another.

    Args:
        verb: "spmm" or "spmm_t".
        weight: the weight.
        left: what it is multiplied by.
        run: maps `left` to the result.
        grad_left: the public verb that maps the gradient of the result to that of `left`.
        sddmm: the public verb of this name.
    """
    other = "spmm_t" if verb == "spmm" else "spmm"
    own = any(operator_of(weight.pattern, name) for name in (other, "sddmm"))
    if (
        not own
        or not isinstance(left, Tensor)
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled(left.device.type)
        or transforming()
        or differentiating_forward()
        or weight.backward == "double_pruned"
        or not (left.requires_grad or weight.values.requires_grad)
    ):
        return run(left)
    pair: Callable[..., Tensor] = sddmm
    if verb == "spmm_t":
        pair = _exchanged(sddmm)
    return _Own.apply(left, weight.values, weight, run, grad_left, pair)  # type: ignore[no-untyped-call]


def _exchanged(sddmm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda u, g, weight: sddmm(g, u, weight)


class _Own(Function):
    @staticmethod
    def forward(
        ctx: Any,
        left: Tensor,
        values: Tensor,
        weight: SparseWeight,
        run: Callable[[Tensor], Tensor],
        grad_left: Callable[..., Tensor],
        grad_values: Callable[..., Tensor],
    ) -> Tensor:
        ctx.save_for_backward(left, values, weight.structure.indices)
        ctx.weight, ctx.verbs = weight, (grad_left, grad_values)
        y = run(left)
        if y.untyped_storage().data_ptr() == left.untyped_storage().data_ptr():
            return y.clone()
        return y.data  # no view: autograd forbids in-place operations on one

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        left, values, _ = ctx.saved_tensors
        need_left, need_values, *_ = ctx.needs_input_grad
        grad_left, grad_values = ctx.verbs
        with _holding(ctx.weight, values) as weight:
            return (
                grad_left(u, weight) if need_left else None,
                grad_values(u, left, weight) if need_values else None,
                *(None,) * 4,
            )


@contextmanager
def _holding(weight: SparseWeight, values: Any) -> Iterator[SparseWeight]:
    """Give a weight the values of the forward pass: functional_call has taken its own back."""
    now = weight._parameters["values"]
    weight._parameters["values"] = values
    try:
        yield weight
    finally:
        weight._parameters["values"] = now
