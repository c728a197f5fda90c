"""holder_of(): what holds a module beside its registered places, as a list of a layer may."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields, is_dataclass
from types import MethodType
from typing import Any

from torch import nn

from gossamer.nn.layers.activation_sparse import ActivationSparseFFN
from gossamer.nn.layers.origin import Absorbed

_DEPTH = 4  # of containers within containers
# Recurrent layers build their lists anew.
_REGISTERED = ("_modules", "_parameters", "_buffers", "_flat_weights", "_flat_weight_refs")


def holder_of(
    model: nn.Module, held: Collection[Any], without: Collection[Any] = ()
) -> tuple[Any, str] | None:
    """Find an attribute that holds an object where no `nn.Module` registers it.

    Looked into are lists, tuples, sets, dicts, dataclasses and partials on the modules of a model.

    Args:
        model: any module.
        held: the objects, modules or parameters.
        without: modules in which, with all in them, nothing is looked for; nor is it in `held`.

    Returns:
        The first object that is held so, and the name of the attribute; None if there is none.

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> model.first = [model[0]]
        >>> holder_of(model, [model[0]])
        (ReLU(), 'first')
    """
    wanted = {id(one): one for one in held}
    roots = [one for one in (*held, *without) if isinstance(one, nn.Module)]
    inside = {id(part) for module in roots for part in module.modules()}
    for name, module in model.named_modules():
        if id(module) in inside or isinstance(module, ActivationSparseFFN | Absorbed):
            continue
        for own, value in vars(module).items():
            found = None if own in _REGISTERED else _held(value, wanted, _DEPTH)
            if found is not None:
                return found, f"{name}.{own}" if name else own
    return None


def _held(value: Any, wanted: Mapping[int, Any], depth: int) -> Any:
    """Return the first of some objects, by their ids, that a value is or holds."""
    if id(value) in wanted:
        return value
    if depth and not isinstance(value, str | bytes | nn.Module):
        for part in _parts(value):
            if (found := _held(part, wanted, depth - 1)) is not None:
                return found
    return None


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
