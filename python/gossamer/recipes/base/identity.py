"""Which recipe wrote a checkpoint: a registry id and the fields by name.

Fields are compared one by one, so that a checkpoint of an older or newer version is still read: a
field that it misses counts as that field's default, a field that is unknown here is ignored, and
an old field name is translated by the recipe's `renamed`. Checkpoints that hold a recipe's `repr`
instead (the format before ids) are parsed.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, ClassVar, Protocol

from gossamer.errors import PatternError, RecipeError
from gossamer.patterns import pattern_of_fields

__all__ = ["describe", "difference", "identity", "name_class", "recipe_id", "translate"]

_NUMBERS = {"inf": math.inf, "nan": math.nan}
# The first name under which the registry holds a class, by the class's import path.
_NAMES: dict[str, str] = {}


class _Recipe(Protocol):
    """What an identity needs of a recipe."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    renamed: ClassVar[Mapping[str, str]]

    def stands_for(self, name: str, was: object, value: object) -> bool: ...


def name_class(path: str, name: str) -> None:
    """Record a registered name of the class at an import path, "module:class"; the first counts."""
    _NAMES.setdefault(path, name)


def recipe_id(kind: type[_Recipe]) -> str:
    """Return the id of a class of recipes.

    It is the class's own `id`, else the first name under which it is registered, else its import
    path.
    """
    if own := kind.__dict__.get("id"):
        return str(own)
    path = f"{kind.__module__}:{kind.__qualname__}"
    return _NAMES.get(path, path)


def identity(recipe: _Recipe) -> dict[str, Any]:
    """Return the id and the fields of a recipe, as numbers, texts and None.

    Returns:
        `{"recipe": id, "fields": {name: value}}`; a pattern is its text.
    """
    found = {f.name: _plain(getattr(recipe, f.name)) for f in fields(recipe) if f.init}
    return {"recipe": recipe_id(type(recipe)), "fields": found}


def describe(saved: object) -> str:
    """Return an identity as text, for messages."""
    if not isinstance(saved, Mapping):
        return str(saved)
    given = ", ".join(f"{name}={value!r}" for name, value in saved["fields"].items())
    return f"{saved['recipe']}({given})"


def translate(kind: type[_Recipe], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields by their present names: old names are translated by `kind.renamed`."""
    return {kind.renamed.get(name, name): value for name, value in given.items()}


def difference(saved: object, recipe: _Recipe) -> str | None:
    """Compare a saved identity with a recipe.

    Args:
        saved: `{"recipe": …, "fields": …}`, or the `repr` that older versions saved.
        recipe: this training's.

    Returns:
        What differs, as "…, this training's …"; None when the two are the same recipe.

    Raises:
        RecipeError: the identity has neither form.
    """
    mine = identity(recipe)
    name: object
    if isinstance(saved, str):
        name, given = _parse(saved)
        same = name == type(recipe).__name__
    elif isinstance(saved, Mapping) and isinstance(saved.get("fields"), Mapping):
        name, given = saved.get("recipe"), saved["fields"]
        same = name == mine["recipe"]
    else:
        raise _unreadable(saved)
    if not same:
        return f"is {name!r:.80}, this training's {mine['recipe']!r}"
    theirs = translate(type(recipe), given)
    differing = []
    for field in fields(recipe):
        if not field.init:
            continue
        value = mine["fields"][field.name]
        default = value if field.default is MISSING else _plain(field.default)
        if (was := theirs.get(field.name, default)) != value and not recipe.stands_for(
            field.name, was, value
        ):
            differing.append((f"{field.name}={was!r:.80}", f"{field.name}={value!r:.80}"))
    if not differing:
        return None
    was, now = (", ".join(texts) for texts in zip(*differing, strict=True))
    return f"{mine['recipe']!r} has {was}, this training's has {now}"


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    """The class name and the fields of a recipe's `repr`."""
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError(text)
        return call.func.id, {str(word.arg): _value(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, TypeError, KeyError, PatternError):
        raise _unreadable(text) from None


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        numbers: dict[str, Any] = {str(word.arg): _value(word.value) for word in node.keywords}
        return str(pattern_of_fields({"name": node.func.id, **numbers}))
    if isinstance(node, ast.Name):
        return _NUMBERS[node.id]
    return ast.literal_eval(node)


def _unreadable(saved: object) -> RecipeError:
    return RecipeError(
        f"the checkpoint's recipe is {saved!r:.120}, which this version cannot read; resume with "
        "the version that wrote it, or train from the start"
    )
