"""holder_of(): what holds a module beside its registered places, as a list of a layer may."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from types import MethodType
from typing import Any

from torch import nn

from gossamer.nn.layers.activation_sparse import ActivationSparseFFN
from gossamer.nn.layers.origin import Absorbed

_DEPTH = 4  # of containers within containers
_REGISTERED = ("_modules", "_parameters", "_buffers")


def holder_of(model: nn.Module, held: nn.Module, *without: nn.Module) -> str | None:
    """Return the name of an attribute that holds a module where no `nn.Module` registers it.

    Looked into are lists, tuples, sets, dicts, dataclasses and partials on the modules of a model.

    Args:
        model: any module.
        held: the module.
        without: modules in which, with all in them, nothing is looked for.

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> model.first = [model[0]]
        >>> holder_of(model, model[0])
        'first'
    """
    inside = {id(part) for module in (held, *without) for part in module.modules()}
    for name, module in model.named_modules():
        if id(module) in inside or isinstance(module, ActivationSparseFFN | Absorbed):
            continue
        for own, value in vars(module).items():
            if own not in _REGISTERED and _holds(value, held, _DEPTH):
                return f"{name}.{own}" if name else own
    return None


def _holds(value: Any, held: nn.Module, depth: int) -> bool:
    if value is held:
        return True
    if depth == 0 or isinstance(value, str | bytes | nn.Module):
        return False
    return any(_holds(part, held, depth - 1) for part in _parts(value))


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__self__]
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in fields(value)]
    return []


__all__ = ["holder_of"]
