"""Size of a model in training: its density, and the bytes of its training state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.nn import MaskedLayer, summary
from gossamer.recipes import Recipe


def density_of(model: nn.Module, recipe: Recipe, dense: int) -> float:
    """Share of a dense twin's parameters that a prepared model uses.

    Args:
        model: prepared, and `recipe` attached to it.
        recipe: of it.
        dense: parameters of the twin.
    """
    kept, _ = kept_entries(recipe.layers)
    inside = {id(m.entries) for m in model.modules() if isinstance(m, MaskedLayer)}
    rest = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    return (kept + rest) / dense


def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe | None) -> int:
    """Bytes of training state: parameters, gradients, moments, structure, the recipe's tensors."""
    total = summary(model, optimizer).total
    if recipe is not None:
        total += sum(tensor.nbytes for tensor in _tensors(recipe.state))
    return total


def kept_entries(layers: Mapping[str, nn.Module]) -> tuple[int, int]:
    """Entries that prepared layers use in a forward pass, and those that they would have dense."""
    kept = whole = 0
    for layer in layers.values():
        for module in layer.modules():
            if isinstance(module, MaskedLayer):
                kept += module.used_entries
                whole += module.out_features * module.in_features
    return kept, whole


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
