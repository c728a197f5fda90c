"""Comparison of a smaller model with the model: copies, random inputs, and equality to rounding."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.pruning.calibration import called

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy, even if a hook has stored a forward result in a module."""
    held = [value for module in model.modules() for value in vars(module).values()]
    computed = [value for value in held if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})


def fresh(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Return copies of the inputs, because a model may write into them."""
    return tuple(given.detach().clone() if isinstance(given, Tensor) else given for given in inputs)


def noise(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Return random numbers for floating inputs, because the example may be all zeros."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(given.shape, generator=generator).to(given)
        if isinstance(given, Tensor) and given.is_floating_point()
        else given
        for given in inputs
    )


def difference(expected: Any, smaller: nn.Module, inputs: Sequence[Any]) -> str | None:
    """Return how the output of a smaller model differs from the expected one, as text.

    Returns:
        None if they are equal up to rounding.
    """
    try:
        return _distance(expected, smaller(*fresh(inputs)))
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        # Sizes that no longer fit.
        return f"an error ({str(error).strip():.200})"


def differs(model: nn.Module, smaller: nn.Module, inputs: Sequence[Any], who: str) -> str | None:
    """Return how the outputs of two models differ, as text.

    A deep network may make much of the rounding of its own dtype: numbers that differ are compared
    again in float64.

    Args:
        model: the model, in evaluation mode.
        smaller: the smaller model, likewise.
        inputs: positional arguments of the forward pass.
        who: the function that a user has called, for errors.

    Returns:
        None if they are equal up to rounding.
    """
    problem = difference(called(model, fresh(inputs), who), smaller, inputs)
    is_exact = all(p.dtype == torch.float64 for p in model.parameters())
    if problem is None or is_exact or not problem[0].isdigit():
        return problem
    exact = tuple(_as_double(given) for given in inputs)
    try:
        expected = copied(model).double()(*fresh(exact))
    except Exception:  # a forward may insist on a dtype
        return problem
    return difference(expected, copied(smaller).double(), exact) and problem


def _as_double(given: Any) -> Any:
    is_real = isinstance(given, Tensor) and given.is_floating_point()
    return given.double() if is_real else given


def _distance(expected: Any, found: Any) -> str | None:
    """Return the difference of two outputs as text; None if they are equal up to rounding."""
    if isinstance(expected, Tensor):
        if not isinstance(found, Tensor) or expected.shape != found.shape:
            return "its shape"
        if not expected.is_floating_point():
            return None if torch.equal(expected, found) else "whole numbers"
        scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
        tolerance = _TOLERANCE.get(expected.dtype, 1e-5) * scale
        if torch.allclose(expected, found, rtol=0, atol=tolerance, equal_nan=True):
            return None
        return f"{float((expected.double() - found.double()).abs().max()):.3g}"
    if is_dataclass(expected) and type(found) is type(expected):
        expected, found = vars(expected), vars(found)
    if isinstance(expected, dict):
        if not isinstance(found, dict) or expected.keys() != found.keys():
            return "its keys"
        parts = [(expected[key], found[key]) for key in expected]
    elif isinstance(expected, tuple | list):
        if not isinstance(found, tuple | list) or len(expected) != len(found):
            return "its length"
        parts = list(zip(expected, found, strict=True))
    else:
        return None
    return next((d for d in (_distance(a, b) for a, b in parts) if d is not None), None)
