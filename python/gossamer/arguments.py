"""Checks of arguments by their annotations: one rule for all functions that a user calls.

The annotation is the declaration: `float` is a number and no NaN, `Annotated[float, POSITIVE]` a
finite number above 0, `Literal["a", "b"]` a choice, a class an instance. `check` compares what was
given with it. What an annotation cannot say (a dtype, a shape) is checked where it matters.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import numbers
import operator
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from gossamer.errors import ArgumentError, DTypeError

__all__ = [
    "COUNT",
    "NOT_NEGATIVE",
    "POSITIVE",
    "SHARE",
    "SIZE",
    "STEPS",
    "Count",
    "NotNegative",
    "Positive",
    "Range",
    "Share",
    "Size",
    "Steps",
    "check",
    "fits",
    "is_number",
    "kinds",
    "shown",
    "words",
]


class Range(NamedTuple):
    """The allowed values of a number: a predicate, and its text for errors."""

    holds: Callable[[float], bool]
    text: str


NOT_NEGATIVE = Range(lambda v: 0 <= v < math.inf, "finite and >= 0")
POSITIVE = Range(lambda v: 0 < v < math.inf, "finite and > 0")
SHARE = Range(lambda v: 0 <= v <= 1, "in [0, 1]")
COUNT = Range(lambda v: v >= 1, "at least 1")
SIZE = Range(lambda v: 1 <= v < 2**31, "at least 1 and below 2**31")
STEPS = Range(lambda v: 1 <= v <= 1_000_000, "at least 1 and at most 1000000")

NotNegative = Annotated[float, NOT_NEGATIVE]
Positive = Annotated[float, POSITIVE]
Share = Annotated[float, SHARE]
Count = Annotated[int, COUNT]
Size = Annotated[int, SIZE]
# A loop of more steps is a slip, and cannot be stopped by its tolerance being too small.
Steps = Annotated[int, STEPS]

_WORDS = {float: "a number", int: "an integer", str: "a text", bool: "a bool", type(None): "None"}
_LONGEST = 10_000  # entries of a sequence that are looked at one by one


def check(
    function: Callable[..., Any],
    given: Mapping[str, Any],
    error: type[ArgumentError] = ArgumentError,
) -> None:
    """Raise unless every argument is what the function's annotation says.

    Call it first, as `check(function, locals())`.

    Args:
        function: the function, or the `__init__` of a class.
        given: the arguments by name; other names are ignored.
        error: class of the error for a number out of range or an unknown choice.

    Raises:
        DTypeError: an argument has another type.
        ArgumentError: a number is NaN or out of its range, or a choice is unknown.

    Example:
        >>> def half(x: float, times: Count = 1) -> float:
        ...     check(half, locals())
        ...     return x / 2**times
        >>> half(3.0)
        1.5
        >>> half(3.0, times=0)
        Traceback (most recent call last):
        gossamer.errors.ArgumentError: half got times=0; it must be at least 1
    """
    who, hints = _hints(function)
    for name, hint in hints:
        if name in given:
            check_one(given[name], hint, f"{who} got {name}", error)


def check_one(
    value: object, hint: Any, what: str, error: type[ArgumentError] = ArgumentError
) -> None:
    """Raise unless one value is what an annotation says.

    Args:
        value: the value.
        hint: the annotation.
        what: the beginning of the message, such as "half got times".
        error: see `check`.
    """
    parts = list(kinds(hint))
    kind = next((kind for kind in parts if _fits(value, kind)), None)
    if kind is None:
        choices = [repr(c) for k in parts if get_origin(k) is Literal for c in get_args(k)]
        if choices and (isinstance(value, str) or all(get_origin(k) is Literal for k in parts)):
            raise error(f"{what}={shown(value)}; choose {' or '.join(choices)}")
        needed = " or ".join(dict.fromkeys(words(k) for k in parts))
        raise DTypeError(f"{what}={shown(value)}; {needed} is needed")
    _check_range(value, kind, what, error)
    for entry, of, where in _entries(value, kind):
        check_one(entry, of, f"{what}{where}", error)


def kinds(hint: Any) -> Iterator[Any]:
    """Yield the parts of a union, or the annotation itself."""
    if get_origin(hint) in (Union, types.UnionType):
        for part in get_args(hint):
            yield from kinds(part)
    else:
        yield hint


def fits(value: Any, kind: type) -> bool:
    """Whether a value is of a plain type; a bool is no number, and NumPy's numbers are numbers."""
    if kind is float:
        return is_number(value)
    if kind is int:
        if _is_bool(value):
            return False
        try:
            operator.index(value)
        except Exception:
            return False
        return not hasattr(value, "shape") or value.shape == ()
    if kind is bool:
        return _is_bool(value)
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol, which nobody asks
        return True


def _is_bool(value: object) -> bool:
    kind = type(value)
    return kind is bool or (kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_"))


def is_number(value: object) -> bool:
    """Whether `value` is a real number and not a bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def words(kind: Any) -> str:
    """Return what a kind is called in an error: "a number", "a Tensor"."""
    if get_origin(kind) is Annotated:
        return words(get_args(kind)[0])
    if kind is None:
        return "None"
    origin = get_origin(kind)
    if origin is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if origin is collections.abc.Callable:
        return "a function"
    if origin in (tuple, list, collections.abc.Sequence, collections.abc.Iterable):
        inner = [a for a in get_args(kind) if a is not Ellipsis]
        of = " or ".join(dict.fromkeys(words(part) for a in inner[:1] for part in kinds(a)))
        size = f"{len(inner)} entries" if origin is tuple and Ellipsis not in get_args(kind) else ""
        return f"a {origin.__name__.lower()} ({size or 'each ' + of})" if inner else "a sequence"
    plain = origin or kind
    name = getattr(plain, "__name__", str(plain))
    return _WORDS.get(plain) or f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


def shown(value: object) -> str:
    """Return a short text of a value for an error; tensors and modules are not written out."""
    if value is None or isinstance(value, str | bytes | bool | int | float | complex):
        try:
            return f"{value!r:.60}"
        except ValueError:  # an integer of thousands of digits
            return "an integer of thousands of digits"
    if isinstance(value, tuple | list | dict | set) and len(value) < 5:
        return f"{value!r:.60}" if all(map(_is_short, value)) else f"a {type(value).__name__}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    shape = getattr(value, "shape", None)
    of = f" of shape {list(shape)}" if isinstance(shape, tuple) else ""
    name = type(value).__name__
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}{of}"


def _is_short(value: object) -> bool:
    return value is None or isinstance(value, str | bool | int | float)


@functools.cache
def _hints(function: Callable[..., Any]) -> tuple[str, tuple[tuple[str, Any], ...]]:
    plain: Any = inspect.unwrap(function)
    hints: dict[str, Any] = {}
    for name, hint in plain.__annotations__.items():
        if name == "return":
            continue
        try:
            one = types.SimpleNamespace(__annotations__={name: hint})
            hints |= typing.get_type_hints(one, plain.__globals__, None, True)
        except NameError:  # of a type that only type checkers import
            continue
    who = plain.__qualname__.removesuffix(".__init__").split(".<locals>.")[-1]
    return who, tuple((n, h) for n, h in hints.items() if h not in (Any, object))


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Annotated:
        return _fits(value, get_args(kind)[0])
    if kind is None:
        return value is None
    if origin is Literal:
        return any(type(value) is type(c) and value == c for c in get_args(kind))
    if origin is collections.abc.Callable or kind is Callable:
        return callable(value)
    if origin is type:
        return isinstance(value, type)
    if origin is tuple:
        size = get_args(kind)
        if not isinstance(value, tuple | list):
            return False
        return Ellipsis in size or not size or len(value) == len(size)
    plain = origin or kind
    if plain in (collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection):
        # A text is a sequence of texts, which nobody means; an array is one of numbers.
        if isinstance(value, str | bytes):
            return False
        if plain is collections.abc.Sequence and hasattr(value, "tolist"):
            numeric = {int, float, bool, Any}
            return bool(value.ndim == 1) and set(get_args(kind)) <= numeric
        return isinstance(value, plain) or (
            plain is collections.abc.Iterable and hasattr(value, "__iter__")
        )
    return fits(value, plain) if isinstance(plain, type) else True


def _check_range(value: Any, kind: Any, what: str, error: type[ArgumentError]) -> None:
    bounds: tuple[Any, ...] = ()
    if get_origin(kind) is Annotated:
        kind, *rest = get_args(kind)
        bounds = tuple(bound for bound in rest if isinstance(bound, Range))
    if kind not in (int, float):
        return
    try:
        number = operator.index(value) if kind is int else float(value)
    except OverflowError:  # an integer beyond float64
        number = math.inf
    if math.isnan(number) if kind is float else False:
        raise error(f"{what}=nan; a number that is not NaN is needed")
    for bound in bounds:
        if not bound.holds(number):
            raise error(f"{what}={shown(value)}; it must be {bound.text}")


def _entries(value: Any, kind: Any) -> Iterator[tuple[Any, Any, str]]:
    """Yield the entries of a sequence or mapping with their annotations and places."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated or not args:
        return
    if origin is tuple and Ellipsis not in args:
        yield from ((v, a, f"[{i}]") for i, (v, a) in enumerate(zip(value, args, strict=True)))
    elif origin in (tuple, list, collections.abc.Sequence):
        if len(value) <= _LONGEST and not hasattr(value, "tolist"):
            yield from ((v, args[0], f"[{i}]") for i, v in enumerate(value))
    elif origin in (dict, collections.abc.Mapping) and len(value) <= _LONGEST:
        for key, entry in value.items():
            yield key, args[0], ", key"
            yield entry, args[1], f"[{shown(key)}]"
