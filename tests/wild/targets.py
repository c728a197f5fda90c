"""The calls that are tried: all public functions, classes, and methods of built objects."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from test_architecture_outside import public_names

# What is public and not tried, and why.
LEFT_OUT = {
    "gossamer.backend.register": "changes the process for all later calls",
    "gossamer.backend.unregister": "changes the process for all later calls",
    "gossamer.recipes.register": "changes the process for all later calls",
    "gossamer.patterns.register_operator": "changes the process for all later calls",
    "gossamer.patterns.register_pattern": "changes the process for all later calls",
    "gossamer.patterns.register_sparsifier": "changes the process for all later calls",
    "gossamer.recipes.RECIPES": "a table of classes that are tried themselves",
}
# Methods that the library calls and a subclass overrides: nobody else calls them.
HOOKS = {
    "gossamer.recipes.": {
        *("find", "layer", "start", "before_step", "after_step", "update", "finished", "groups"),
        *(
            "stands_for",
            "regularise",
            "moved",
            "grown",
            "growth",
            "scores",
            "watched",
            "of_type",
            "average",
        ),
    },
    **{
        f"gossamer.{kind}": {"parse", "refuse"}
        for kind in ("NM", "GroupedNM", "Unstructured", "Block", "Nonzeros")
    },
    "gossamer.Sparse": {"dense_gradient", "example"},
    "gossamer.nn.": {
        *("dense_gradient", "example"),
        *("assign", "weigh", "pack", "input_gradient", "weight_gradient", "check_input"),
    },
}


@dataclass(frozen=True)
class Target:
    """One public callable.

    Attributes:
        name: its public name; a method's is that of its class and its own.
        call: the function or class; the plain function of a method.
        owner: the class whose object a method needs, else None.
    """

    name: str
    call: Any
    owner: type | None = None


def targets() -> list[Target]:
    """Return every public callable once, by name."""
    found: dict[str, Target] = {}
    seen: set[int] = set()
    for name, value in sorted(_public("gossamer"), key=lambda item: (item[0].count("."), item[0])):
        if id(value) in seen or name in LEFT_OUT:
            continue
        seen.add(id(value))
        if inspect.isclass(value):
            if issubclass(value, Exception):
                continue
            if not inspect.isabstract(value) and not getattr(value, "_is_protocol", False):
                found[name] = Target(name, value)
            found |= {target.name: target for target in _methods(name, value)}
        elif callable(value) and hasattr(value, "__module__"):
            found[name] = Target(name, value)
    return list(found.values())


def _public(module: str, above: frozenset[str] = frozenset()) -> Iterator[tuple[str, Any]]:
    """Yield the public names of a module and of the modules that are public names of it."""
    home = importlib.import_module(module)
    names = sorted(public_names(module))
    for name in names:
        value = getattr(home, name)
        path = f"{module}.{name}"
        if isinstance(value, ModuleType):
            ours = value.__name__.startswith("gossamer.") and value.__name__ not in above
            if ours and value.__name__ != module:
                yield from _public(value.__name__, above | {module, value.__name__})
        elif str(getattr(value, "__module__", "")).startswith("gossamer"):
            yield path, value


def _methods(name: str, kind: type) -> Iterator[Target]:
    """Yield the public methods that a class of ours defines or inherits from ours."""
    for attribute in sorted(dir(kind)):
        if attribute.startswith("_") and attribute != "__call__":
            continue
        home = next((base for base in kind.__mro__ if attribute in vars(base)), None)
        if home is None or not home.__module__.startswith("gossamer"):
            continue
        if any(name.startswith(where) and attribute in hooks for where, hooks in HOOKS.items()):
            continue
        value = inspect.getattr_static(kind, attribute)
        path = f"{name}.{attribute}"
        if isinstance(value, classmethod | staticmethod):
            yield Target(path, getattr(kind, attribute))
        elif inspect.isfunction(value):
            yield Target(path, value, kind)
