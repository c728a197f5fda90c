"""Places in a model by the names that were saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from gossamer.errors import CheckpointError
from gossamer.nn.layers.parameter import SparseParameter


def place_of(model: nn.Module, name: str, described: Any) -> Any:
    """Return the layer of a name, or the parameter that was replaced by layers."""
    above, _, own = name.rpartition(".")
    if isinstance(described, Mapping) and described.get("kind") == SparseParameter.__name__:
        parameter = module_at(model, above)._parameters.get(own)
        if parameter is not None:
            return parameter
    return module_at(model, name)


def module_at(model: nn.Module, name: str) -> nn.Module:
    """Return the module of a name; CheckpointError if there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise CheckpointError(
            f"the model has no module {name!r:.120}, which was saved; give one of the same class"
        ) from None


def member_at(model: nn.Module, name: str) -> Any:
    """Return the parameter, buffer or module of a name; CheckpointError if there is none."""
    above, _, own = name.rpartition(".")
    found = getattr(module_at(model, above), own, None)
    if found is None:
        raise CheckpointError(f"the model has no {name!r:.120}")
    return found


__all__ = ["member_at", "module_at", "place_of"]
