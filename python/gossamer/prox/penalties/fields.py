"""Field declarations of penalties, each with the check of its parameter's values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

from gossamer.arguments import Range as Range
from gossamer.arguments import is_number
from gossamer.errors import DTypeError, PenaltyError
from gossamer.prox.checks import flat64
from gossamer.schedules import Schedule

Number: TypeAlias = float | Schedule


NOT_NEGATIVE = Range(lambda v: v >= 0, ">= 0")
POSITIVE = Range(lambda v: v > 0, "> 0")
BOUND = Range(lambda v: True, "a number or +-inf")  # also infinite ones, see `checked_number`
SHARE = Range(lambda v: 0 <= v <= 1, "in [0, 1]")


class Kind(NamedTuple):
    """The kind of a field.

    Attributes:
        check: takes the value, the penalty's class name and the field's name; returns the checked
            value to store.
        scheduled: whether the value may be a schedule.
        operator: whether the value is a parameter of the compiled operator.
        per_group: whether the value is a vector with one number per group.
    """

    check: Callable[[Any, str, str], Any]
    scheduled: bool = False
    operator: bool = False
    per_group: bool = False


def number(allowed: Range, *, scheduled: bool = False, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field for one number, or if `scheduled` also for a schedule."""

    def check(value: Any, who: str, name: str) -> float:
        return checked_number(value, who, name, allowed)

    return dataclasses.field(
        default=default, metadata={"kind": Kind(check, scheduled, operator=True)}
    )


def budget(*, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field for a budget: a number, a share such as "25%", or a schedule."""
    return dataclasses.field(default=default, metadata={"kind": Kind(_checked_budget, True)})


def per_group(allowed: Range, *, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field for one number per group, or None; it is stored as a float64 vector."""

    def check(value: Any, who: str, name: str) -> Tensor | None:
        return None if value is None else _checked_vector(value, who, name, allowed)

    return dataclasses.field(default=default, metadata={"kind": Kind(check, per_group=True)})


def _checked_weights(value: Any, who: str, name: str) -> Tensor | None:
    if value is None:
        return None
    vector = _checked_vector(value, who, name, NOT_NEGATIVE)
    return vector.view(tuple(np.shape(value)))


def _checked_flag(value: Any, who: str, name: str) -> bool:
    if not isinstance(value, bool):
        raise DTypeError(f"{who} got {name}={value!r:.80}; True or False is needed")
    return value


# Factors of the groups, which keep the shape in which they were given, and the sign of the entries.
WEIGHTS = {"kind": Kind(_checked_weights, per_group=True)}
FLAG = {"kind": Kind(_checked_flag)}


def per_rank(*, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field for numbers >= 0 that never rise, or None; stored as a float64 vector."""

    def check(value: Any, who: str, name: str) -> Tensor | None:
        if value is None:
            return None
        vector = _checked_vector(value, who, name, NOT_NEGATIVE)
        if bool((vector.diff() > 0).any()):
            raise PenaltyError(f"{who} got {name} that rises; sort it from large to small")
        return vector

    return dataclasses.field(default=default, metadata={"kind": Kind(check)})


def kinds(penalty: type) -> dict[str, Kind]:
    """The checked fields of a penalty class, in order."""
    fields = dataclasses.fields(penalty)
    return {f.name: f.metadata["kind"] for f in fields if "kind" in f.metadata}


def checked_number(value: object, who: str, name: str, allowed: Range) -> float:
    """Check that `value` is a finite number in the allowed range.

    Args:
        value: the value.
        who: the class or function named in the error.
        name: the parameter named in the error.
        allowed: the allowed range.

    Returns:
        The value as a float.

    Raises:
        DTypeError: the value is not a number.
        PenaltyError: the value is not finite, or out of its range.
    """
    if not is_number(value):
        raise DTypeError(f"{who} got {name}={value!r:.80}; a number is needed")
    try:
        found = float(value)  # type: ignore[arg-type]
    except OverflowError:  # an integer beyond float64
        found = math.inf
    if allowed is BOUND and not math.isnan(found):
        return found
    if not (math.isfinite(found) and allowed.holds(found)):
        raise PenaltyError(f"{who} got {name}={found}; it must be finite and {allowed.text}")
    return found


def _checked_vector(given: Any, who: str, name: str, allowed: Range) -> Tensor:
    try:
        vector = flat64(given).clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DTypeError(f"{who} got {name} that is not a vector of numbers: {error}") from None
    for extreme in (vector.min().item(), vector.max().item()) if len(vector) else ():
        checked_number(extreme, who, name, allowed)
    return vector


def _checked_budget(k: object, who: str, name: str) -> object:
    if not isinstance(k, str):
        return checked_number(k, who, name, NOT_NEGATIVE)
    try:
        percent = float(k.strip().removesuffix("%")) if k.strip().endswith("%") else -1.0
    except ValueError:
        percent = -1.0
    if not 0 <= percent <= 100:
        raise PenaltyError(
            f'{who} got {name}={k!r:.80}; give a number of groups, or a share from "0%" to "100%"'
        )
    return k.strip()
