"""Factories: what builds a dense model, by the name that a file stores.

A file may name any importable object, and calling it must not be a way to run a command. So only
what declares that it makes a module is called: a class of `nn.Module`, or a function that is
annotated to return one.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from gossamer.errors import ArgumentError, CheckpointError


def name_of(factory: str | Callable[..., nn.Module]) -> str:
    """Return the name "module:name" of a factory that `build` can call.

    Raises:
        ArgumentError: the factory cannot be found by its name, or does not declare a module.
    """
    name = factory
    if not isinstance(factory, str):
        module, own = (getattr(factory, part, None) for part in ("__module__", "__qualname__"))
        name = f"{module}:{own}"
    try:
        found = _find(str(name))
    except CheckpointError as error:
        raise ArgumentError(f"factory={name!r:.120} cannot be used by load: {error}") from None
    if not isinstance(factory, str) and found is not factory:
        raise ArgumentError(f"factory={factory!r:.120} is not {name}; give what its module has")
    return str(name)


def build(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """Call the factory of a name.

    Raises:
        CheckpointError: there is none, it does not declare a module, or it fails.
    """
    factory = _find(name)
    try:
        model = factory(**kwargs)
    except Exception as error:
        raise CheckpointError(
            f"the factory {name} raised {type(error).__name__}: {error!s:.300}; give load a model "
            "(model=...)"
        ) from error
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"the factory {name} returned a {type(model).__name__}, no nn.Module")
    return model


def _find(name: str) -> Callable[..., Any]:
    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise CheckpointError(f"the factory is {name!r:.120}; its name has the form 'module:name'")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever a module raises when it is imported
        raise CheckpointError(
            f"the factory {name:.120} cannot be imported ({error}); install what has it, "
            "or give load a model (model=...)"
        ) from error
    if not _makes_modules(found):
        raise CheckpointError(
            f"{name:.120} is neither a class of nn.Module nor a function that is annotated to "
            "return one; annotate it, or give load a model (model=...)"
        )
    return found  # type: ignore[no-any-return]


def _makes_modules(found: object) -> bool:
    made: object = found
    if not isinstance(found, type):
        if not inspect.isroutine(found):
            return False
        try:
            made = typing.get_type_hints(found).get("return")
        except Exception:  # annotations that cannot be read declare nothing
            return False
    return isinstance(made, type) and issubclass(made, nn.Module)


__all__ = ["build", "name_of"]
