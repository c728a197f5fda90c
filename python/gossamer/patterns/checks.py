"""Checks and texts that the patterns share."""

from __future__ import annotations

import operator
from decimal import Decimal

from gossamer.arguments import fits, is_number
from gossamer.errors import DTypeError, PatternError, ShapeError
from gossamer.patterns.protocol import Pattern

VECTORS = (1, 4, 8, 16, 32, 64, 128)
# Rows of a panel in storage; a wider vector is a run of panels with equal lists of columns.
PANELS = (1, 4, 8)
MAX_M = 64
PERCENT = r"(-?(?:\d{1,9}(?:\.\d*)?|\.\d+))\s*%"
"""The form of a sparsity in a text."""
MAX_CHUNK = 2**15


class Vectored(Pattern):
    """Base of the patterns whose `vector` rows share one list of columns."""

    vector: int

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of the tiles that are kept or dropped as one."""
        return self.vector, 1

    @property
    def panel(self) -> int:
        """Rows of a panel in storage; a vector above 8 is a run of panels of 8 rows."""
        return panel_for(self.vector)


def check_sizes(rows: int, cols: int, who: str) -> tuple[int, int]:
    """Return both sizes as int; DTypeError if not an integer, ShapeError if negative."""
    rows, cols = as_integer(rows, f"{who} got rows"), as_integer(cols, f"{who} got cols")
    if rows < 0 or cols < 0:
        raise ShapeError(
            f"{who} got shape [{rows}, {cols}]; sizes must not be negative: "
            "pass [out_features, in_features]"
        )
    return rows, cols


def unit_interval(sparsity: object, who: str) -> float:
    """Return the sparsity as float; DTypeError if not a number, PatternError outside [0, 1]."""
    if not is_number(sparsity):
        raise DTypeError(
            f"{who} got sparsity={sparsity!r}; sparsity must be a number: "
            "pass the dropped share, for example 0.9"
        )
    if not 0 <= sparsity <= 1:  # type: ignore[operator]  # typeshed: Real compares to nothing
        raise PatternError(
            f"{who} got sparsity={sparsity}; sparsity must be in [0, 1]: "
            "pass the dropped share, for example 0.9 to keep a tenth"
        )
    return abs(float(sparsity))  # type: ignore[arg-type]  # turns -0.0 into 0.0, whose text is "0%"


def as_integer(value: object, what: str) -> int:
    """Return an integer (NumPy's too) as int; DTypeError for anything else, also for a bool."""
    if fits(value, int):
        return operator.index(value)  # type: ignore[arg-type]
    raise DTypeError(f"{what}={value!r}; it must be an integer: pass a whole number such as 4")


def check_vector(vector: int, who: str) -> None:
    """Raise PatternError unless panels may have so many rows."""
    if vector not in VECTORS:
        raise PatternError(
            f"{who} got vector={vector}; vector must be 1, 4, 8, 16, 32, 64 or 128: choose how "
            "many rows share their columns"
        )


def check_rows(rows: int, pattern: Vectored, fitting: object, who: str) -> None:
    """Raise PatternError, which names a fitting pattern, unless rows are whole panels."""
    if rows % pattern.vector:
        raise misfit(who, "out_features", rows, pattern.vector, pattern, fitting)


def panel_for(rows: int) -> int:
    """Return the rows of the highest panel that divides so many rows."""
    return next(v for v in reversed(PANELS) if rows % v == 0)


def vector_for(rows: int, most: int) -> int:
    """Return the widest vector up to `most` that divides the rows."""
    return next(v for v in reversed(VECTORS) if v <= most and rows % v == 0)


def kept_slots(slots: int, density: float) -> int:
    """Return the kept ones of so many slots: rounded, halves to even, but one where 0 < density.

    A small layer would otherwise be rounded to nothing, and the model be constant for ever.
    """
    return max(round(slots * density), 1) if slots and density else 0


def misfit(
    who: str, name: str, size: int, unit: int, pattern: object, fitting: object
) -> PatternError:
    """Return the error of a size that is no multiple of `unit`."""
    return PatternError(
        f"{who} got {name}={size} with pattern {pattern}; {name} must be a multiple of {unit}: "
        f"choose {fitting}, pad to {-(-size // unit) * unit}, "
        "or exclude the layer (exclude=...)"
    )


def vector_text(vector: int) -> str:
    """Return the end of a pattern's text, such as ":v4"."""
    return "" if vector == 1 else f":v{vector}"


def percent(sparsity: float) -> str:
    """Return a sparsity as text, such as "97.5%"."""
    text = f"{Decimal(repr(sparsity)) * 100:f}"  # as float, 0.07 * 100 is 7.000000000000001
    return (text.rstrip("0").rstrip(".") if "." in text else text) + "%"
