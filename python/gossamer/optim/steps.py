"""Steps of an optimizer, followed through torch's hooks: when gradients are there, and afterwards.

A step may get a closure, which computes the gradients inside the step: trainers give one always,
L-BFGS calls it several times. A fused optimizer gets gradients that are still scaled, and skips the
step where they overflowed. A subclass that calls `super().step()` runs torch's hooks twice. All of
this looks alike to the two functions that follow.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch

from gossamer.errors import DTypeError

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["first", "follow", "unwrapped"]


def unwrapped(optimizer: object) -> torch.optim.Optimizer:
    """Return torch's optimizer inside the wrappers of trainers, which hold it as `.optimizer`.

    Raises:
        DTypeError: there is none.
    """
    inner = optimizer
    while not hasattr(inner, "_optimizer_step_pre_hooks") and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    if not isinstance(inner, torch.optim.Optimizer):
        raise DTypeError(
            f"the optimizer is a {type(optimizer).__name__}; a torch.optim.Optimizer is needed, "
            "or a wrapper that holds one as .optimizer"
        )
    return inner


def follow(
    optimizer: torch.optim.Optimizer, before: Callable[[int], None], after: Callable[[], None]
) -> list[Any]:
    """Call a function whenever the gradients of a step are there, and one after each step.

    A step that gradient scaling skips, because a gradient is not finite, calls neither.

    Args:
        optimizer: any optimizer with torch's step hooks.
        before: called without autograd with the number of evaluations of this step before: once
            per step, or after each call of a closure.
        after: called without autograd after the step.

    Returns:
        Handles whose `remove()` ends it.

    Example:
        >>> x = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.SGD([x], lr=0.1)
        >>> _ = follow(optimizer, lambda n: print("gradients", x.grad.tolist()), lambda: None)
        >>> def closure():
        ...     x.sum().backward()
        >>> optimizer.step(closure)
        gradients [1.0, 1.0]
    """
    running: FrameType | None = None  # the step, also one that has raised
    inner = 0  # steps inside it that have not ended

    def enter(
        stepped: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        nonlocal running, inner
        frame = sys._getframe(1)
        if running is not None and _is_inside(frame, running):
            inner += 1
            return None
        running, inner = frame, 0
        own, *given = args  # torch passes the optimizer itself first
        if any(callable(value) for value in (*given, *kwargs.values())):
            return (own, *map(behind, given)), {k: behind(value) for k, value in kwargs.items()}
        _unscale(stepped)
        if not _is_skipped(stepped):
            with torch.no_grad():
                before(0)
        return None

    def behind(value: Any) -> Any:
        """Return a closure that calls `before` when it has run; other values as they are."""
        if not callable(value):
            return value
        evaluations = 0

        @wraps(value, updated=())
        def evaluate(*args: Any, **kwargs: Any) -> Any:
            nonlocal evaluations
            loss = value(*args, **kwargs)
            with torch.no_grad():
                before(evaluations)
            evaluations += 1
            return loss

        return evaluate

    def leave(stepped: Any, args: Any, kwargs: Any) -> None:
        nonlocal running, inner
        if inner:
            inner -= 1
            return
        running = None
        if not _is_skipped(stepped):
            with torch.no_grad():
                after()

    return [optimizer.register_step_pre_hook(enter), optimizer.register_step_post_hook(leave)]


def first(optimizer: torch.optim.Optimizer, handle: Any) -> Any:
    """Let a hook that runs before steps run before all others; return its handle."""
    hooks: Any = optimizer._optimizer_step_pre_hooks  # torch has no other way to order them
    hooks.move_to_end(handle.id, last=False)
    return handle


def _is_inside(frame: FrameType | None, outer: FrameType) -> bool:
    """Return whether a call has come from another one that is still running."""
    while frame is not None and frame is not outer:
        frame = frame.f_back
    return frame is outer


def _unscale(optimizer: Any) -> None:
    """Divide the gradients by the scale that a fused step would divide them by."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.div_(scale.to(parameter.grad.device))
    optimizer.grad_scale = None


def _is_skipped(optimizer: Any) -> bool:
    """Return whether the fused step that gradient scaling has asked for changes nothing."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)
