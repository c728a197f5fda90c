"""The hyper-parameters of a recipe have the types that its dataclass says."""

from __future__ import annotations

import numbers
import operator
import types
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gossamer.errors import DTypeError

_WORDS = {float: "a number", int: "an integer", str: "a text", type(None): "None"}


def check_fields(recipe: Any) -> None:
    """Check the type of each field but the pattern; what values are good, a recipe knows itself.

    Args:
        recipe: of a dataclass.

    Raises:
        DTypeError: a field holds another type than its annotation names.
    """
    hints = get_type_hints(type(recipe))
    for field in fields(recipe):
        if not field.init or field.name == "pattern":
            continue
        value, kinds = getattr(recipe, field.name), list(_kinds(hints[field.name]))
        if not any(_fits(value, kind) for kind in kinds):
            needed = " or ".join(dict.fromkeys(_WORDS.get(k, k.__name__) for k in kinds))
            raise DTypeError(
                f"{type(recipe).__name__} got {field.name}={value!r:.80}; it must be {needed}"
            )


def _kinds(hint: Any) -> list[type]:
    if get_origin(hint) in (Union, types.UnionType):
        return [kind for part in get_args(hint) for kind in _kinds(part)]
    if get_origin(hint) is Literal:
        return list(dict.fromkeys(type(value) for value in get_args(hint)))
    return [hint if isinstance(hint, type) else object]


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if kind is int and not isinstance(value, bool):
        try:
            operator.index(value)
        except TypeError:
            return False
        return True
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
