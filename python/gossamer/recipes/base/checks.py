"""Checks of a recipe's fields: types from the dataclass, ranges and choices from each recipe.

Every check takes `what`, the beginning of its message, such as "SET got fraction".
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import fields
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from gossamer.arguments import fits, kinds, shown, words
from gossamer.errors import DTypeError, PatternError, RecipeError
from gossamer.masks.selection import is_own
from gossamer.nn.layers.base import plain_groups
from gossamer.patterns import NM, Pattern, parse_pattern

__all__ = [
    "check_choice",
    "check_count",
    "check_fields",
    "check_number",
    "check_phases",
    "check_seed",
    "check_share",
    "parse_sample",
    "refuse_own",
    "refuse_patterns",
    "refuse_unmovable",
    "refuse_unprunable",
]


def check_fields(recipe: Any) -> None:
    """Check the type of each field except the pattern; ranges are checked by each recipe.

    Numbers of other types (NumPy scalars, an int where a float is declared) are replaced by plain
    ones in place.

    Args:
        recipe: an instance of a dataclass.

    Raises:
        DTypeError: a field has another type than its annotation.
    """
    hints = get_type_hints(type(recipe))
    for field in fields(recipe):
        if not field.init or field.name == "pattern":
            continue
        value, plain = getattr(recipe, field.name), list(_plain(hints[field.name]))
        kind = next((kind for kind in plain if fits(value, kind)), None)
        what = f"{type(recipe).__name__} got {field.name}={shown(value)}"
        if kind is None:
            needed = " or ".join(dict.fromkeys(map(words, plain)))
            raise DTypeError(f"{what}; it must be {needed}")
        if kind is float and value != value:
            raise RecipeError(f"{what}; it must be a number that is not NaN")
        if kind is int:
            setattr(recipe, field.name, operator.index(value))
        elif kind is float:
            setattr(recipe, field.name, _as_float(value))


def check_share(value: float, what: str, below_one: bool = False) -> float:
    """Return a share.

    Args:
        value: the share.
        what: beginning of the message.
        below_one: refuse 1 as well.

    Raises:
        RecipeError: the value is not in [0, 1], or not in [0, 1) with `below_one`.
    """
    if not 0.0 <= value <= 1.0 or (below_one and value == 1.0):
        interval = "[0, 1)" if below_one else "[0, 1]"
        raise RecipeError(f"{what}={value!r:.80}; it must be a share in {interval}: pass, say, 0.5")
    return value


def check_phases(who: str, dense_share: float, finetune_share: float) -> None:
    """Check the shares of the first and the last phase of a training.

    Raises:
        RecipeError: a share is not in [0, 1), or nothing is left between the two phases.
    """
    check_share(dense_share, f"{who} got dense_share", below_one=True)
    check_share(finetune_share, f"{who} got finetune_share", below_one=True)
    if dense_share + finetune_share >= 1.0:
        raise RecipeError(
            f"{who} got dense_share={dense_share} and finetune_share={finetune_share}; their sum "
            "must be below 1, so that steps are left for the transition: choose smaller shares"
        )


def check_number(value: float, what: str, positive: bool = False) -> float:
    """Return a finite number of at least 0, or above 0 with `positive`.

    Raises:
        RecipeError: the number is negative, infinite or NaN, or 0 with `positive`.
    """
    if not 0.0 <= value < math.inf or (positive and value == 0.0):
        needed = "above 0" if positive else "at least 0"
        raise RecipeError(f"{what}={value!r:.80}; it must be a finite number, {needed}")
    return value


def check_count(value: int, what: str, least: int = 1) -> int:
    """Return an integer of at least `least`.

    Raises:
        RecipeError: the integer is smaller.
    """
    if value < least:
        raise RecipeError(f"{what}={value}; it must be at least {least}: pass a larger number")
    return value


def check_seed(value: int, what: str) -> int:
    """Return a seed.

    Raises:
        RecipeError: the seed is not in [0, 2**64).
    """
    if not 0 <= value < 2**64:
        raise RecipeError(f"{what}={value}; it must be at least 0 and below 2**64: pass 0")
    return value


def check_choice(value: object, what: str, choices: Sequence[str]) -> None:
    """Raise RecipeError unless the value is one of the choices."""
    if value not in choices:
        raise RecipeError(f"{what}={value!r:.80}; choose {' or '.join(choices)}")


def parse_sample(sample: str | NM | None, who: str) -> NM | None:
    """Return the sampling pattern of a recipe; None means no sampling.

    Raises:
        PatternError: the sample is neither None nor N:M without shared rows.
    """
    return None if sample is None else plain_groups(sample, f"{who}, mvue,")


def refuse_patterns(
    pattern: str | Pattern, refused: type[Pattern] | UnionType, why: str, fitting: str
) -> None:
    """Raise PatternError when a recipe cannot use patterns of this class.

    Args:
        pattern: the recipe's pattern.
        refused: classes of patterns.
        why: what goes wrong with them.
        fitting: patterns to use instead.
    """
    if isinstance(pattern, refused):
        raise PatternError(f"pattern {pattern} was given; {why}: choose {fitting}, or 'static'")


def refuse_unmovable(pattern: str | Pattern, who: str) -> None:
    """Raise PatternError for a pattern whose masks single moves would break."""
    if not parse_pattern(pattern).moves:
        raise PatternError(
            f"pattern {pattern} was given; {who} moves single entries, which its masks do not "
            "allow (n:m:g would lose the balance of its choices): choose a pattern such as '2:4' "
            "or '50%', or 'static'"
        )


def refuse_unprunable(pattern: str | Pattern, who: str) -> None:
    """Raise PatternError for a pattern that has no sparser and denser ones of its kind."""
    pattern = parse_pattern(pattern)
    if not (isinstance(pattern, NM) or pattern.adjustable):
        raise PatternError(
            f"pattern {pattern} was given; {who} prunes step by step, and there is no denser one "
            "of its kind (n:m:g would lose the balance of its choices): choose a pattern such as "
            "'2:4' or '50%', or 'static'"
        )


def refuse_own(pattern: str | Pattern, who: str, why: str) -> None:
    """Raise PatternError for a pattern from outside the package."""
    if not is_own(parse_pattern(pattern)):
        raise PatternError(
            f"pattern {pattern} was given; {who} {why}: choose a pattern of the package such as "
            "'2:4' or '50%', or 'static'"
        )


def _plain(hint: Any) -> Iterator[type]:
    """Yield the types of an annotation; a choice has those of its values, which recipes check."""
    for kind in kinds(hint):
        if get_origin(kind) is Literal:
            yield from dict.fromkeys(type(value) for value in get_args(kind))
        else:
            yield kind if isinstance(kind, type) else object


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond float64
        return math.copysign(math.inf, value)
