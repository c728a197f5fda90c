"""The swap itself: new layers take the places of old ones in a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from gossamer.nn.foreign import tell_configs
from gossamer.nn.layers.activation_sparse import ActivationSparseFFN
from gossamer.nn.layers.base import MaskedLayer
from gossamer.nn.layers.in_place import become, check_swap, in_place, put


def _adopt(new: nn.Module, old: nn.Module) -> None:
    """Give a module the training mode and the hooks of the one in whose place it comes."""
    new.train(old.training)
    for name in vars(nn.Module()):
        if "_hook" in name:
            setattr(new, name, getattr(old, name))


def swap(model: nn.Module, layers: Mapping[int, nn.Module]) -> nn.Module:
    """Put new layers in the places of old ones, by the ids of these; in place where it goes."""
    others: dict[int, nn.Module] = {}
    for module in list(model.modules()):
        if (new := layers.get(id(module), module)) is module:
            continue
        if in_place(module, new):
            become(module, new)
        else:
            if isinstance(new, nn.Module):
                _adopt(new, module)
            others[id(module)] = new
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and id(child) in others:
                put(parent, name, others[id(child)])
        for name, parameter in list(parent._parameters.items()):
            if parameter is not None and id(parameter) in layers:
                put(parent, name, layers[id(parameter)])
    _leave_fast_paths(model)
    model = others.get(id(model), model)
    tell_configs(model)
    return model


def _leave_fast_paths(model: nn.Module) -> None:
    """Make torch's encoders call their layers.

    In inference they pass raw weights to a fused dense kernel, unless these attributes forbid it.
    """
    for module in model.modules():
        # The encoders see themselves that a SparseWeight is no plain tensor.
        layers = (m for m in module.modules() if isinstance(m, MaskedLayer))
        dense = any(layer.sparse_weight is None for layer in layers)
        if dense or ActivationSparseFFN.find_in(module):
            if isinstance(module, nn.TransformerEncoderLayer):
                module.activation_relu_or_gelu = 0
            elif isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False


def replace_modules(model: nn.Module, new: Mapping[Any, nn.Module]) -> nn.Module:
    """Replace modules of a model in place; the new ones get the old hooks and training mode.

    A parameter may be replaced too, by a module that stands for it.

    Args:
        model: any module; if it is replaced itself, use the returned module.
        new: new module by old module or parameter.

    Returns:
        The model.
    """
    layers = {id(old): layer for old, layer in new.items()}
    check_swap(model, layers)
    return swap(model, layers)


__all__ = ["check_swap", "replace_modules", "swap"]
