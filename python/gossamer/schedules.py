"""Schedules: numbers that change over training, as value objects. No torch needed.

A schedule is called with the step, counted from 0, and returns a number. Before `begin_step` it is
`start`, from `end_step` on it is `end`; in between, with u = (step - begin) / (end - begin),

    Linear: start + (end - start) u
    Cubic:  end + (start - end) (1 - u)^3        falls fast at first, then settles
    Cosine: end + (start - end) (1 + cos(pi u)) / 2
"""

import math
from dataclasses import dataclass
from typing import Protocol

from gossamer.arguments import is_number
from gossamer.errors import DTypeError, ScheduleError

__all__ = ["Constant", "Cosine", "Cubic", "Linear", "Schedule"]


class Schedule(Protocol):
    """A function from the step to a number, such as the classes of this module."""

    def __call__(self, step: int, /) -> float:
        """Return the number of a step."""


@dataclass(frozen=True)
class Constant:
    """The same number at every step.

    Args:
        value: the number.

    Raises:
        ScheduleError: the number is not finite.
        DTypeError: not a number.

    Example:
        >>> Constant(0.5)(1000)
        0.5
    """

    value: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _finite(self.value, "value", "Constant"))

    def __call__(self, step: int, /) -> float:
        """Return the number."""
        return self.value


@dataclass(frozen=True)
class Linear:
    """From one number to another in a straight line.

    Args:
        start: the number up to `begin_step`.
        end: the number from `end_step` on.
        begin_step: the last step with `start`.
        end_step: the first step with `end`; at least `begin_step`.

    Raises:
        ScheduleError: a number is not finite, or the end is before the beginning.
        DTypeError: not a number.

    Example:
        >>> [Linear(0, 1, begin_step=10, end_step=20)(step) for step in (0, 15, 30)]
        [0.0, 0.5, 1.0]
    """

    start: float
    end: float
    begin_step: int
    end_step: int

    def __post_init__(self) -> None:
        who = type(self).__name__
        for name in ("start", "end", "begin_step", "end_step"):
            value = _finite(getattr(self, name), name, who)
            object.__setattr__(self, name, value)
        if self.end_step < self.begin_step:
            raise ScheduleError(
                f"{who} got begin_step={self.begin_step:g}, end_step={self.end_step:g}; "
                "a schedule ends at or after its beginning: swap the steps"
            )

    def __call__(self, step: int, /) -> float:
        """Return the number of a step."""
        if not is_number(step):
            raise DTypeError(f"{type(self).__name__} got step={step!r:.80}; a number is needed")
        if step >= self.end_step:
            return self.end
        if step <= self.begin_step:
            return self.start
        share = (step - self.begin_step) / (self.end_step - self.begin_step)
        return self.end + (self.start - self.end) * self._left(share)

    def _left(self, share: float) -> float:
        """The remaining share of the way after a share of the steps: from 1 down to 0."""
        return 1.0 - share


@dataclass(frozen=True)
class Cubic(Linear):
    """From one number to another, fast at first; used by gradual pruning.

    Args:
        start: the number up to `begin_step`.
        end: the number from `end_step` on.
        begin_step: the last step with `start`.
        end_step: the first step with `end`; at least `begin_step`.

    Raises:
        ScheduleError: a number is not finite, or the end is before the beginning.
        DTypeError: not a number.

    Reference:
        Zhu and Gupta 2017, "To prune, or not to prune", equation 1.

    Example:
        >>> Cubic(64, 8, begin_step=0, end_step=100)(50)
        15.0
    """

    def _left(self, share: float) -> float:
        return (1.0 - share) ** 3


@dataclass(frozen=True)
class Cosine(Linear):
    """From one number to another along half a cosine: slow at both ends.

    Args:
        start: the number up to `begin_step`.
        end: the number from `end_step` on.
        begin_step: the last step with `start`.
        end_step: the first step with `end`; at least `begin_step`.

    Raises:
        ScheduleError: a number is not finite, or the end is before the beginning.
        DTypeError: not a number.

    Reference:
        Loshchilov and Hutter 2017, "SGDR", equation 5, without restarts.

    Example:
        >>> round(Cosine(1, 0, begin_step=0, end_step=4)(1), 4)
        0.8536
    """

    def _left(self, share: float) -> float:
        return (1.0 + math.cos(math.pi * share)) / 2.0


def _finite(value: object, name: str, who: str) -> float:
    if not is_number(value):
        raise DTypeError(f"{who} got {name}={value!r:.80}; a number is needed")
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:  # a whole number beyond float64
        number = math.inf
    if not math.isfinite(number):
        raise ScheduleError(f"{who} got {name}={number}; a finite number is needed")
    return number
