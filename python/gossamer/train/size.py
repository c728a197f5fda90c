"""Size of a model in training: its density, and the bytes of its training state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.nn import MaskedLayer, summary
from gossamer.recipes import Recipe


def density_of(model: nn.Module, recipe: Recipe, dense: int) -> float:
    """Return the used parameters of a prepared model over those of the dense model.

    Args:
        model: model prepared by `recipe`.
        recipe: recipe attached to the model.
        dense: number of parameters of the dense model.
    """
    kept, _ = kept_entries(recipe.layers)
    inside = {id(m.entries) for m in model.modules() if isinstance(m, MaskedLayer)}
    rest = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    return (kept + rest) / dense


def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe | None) -> int:
    """Return the bytes of parameters, gradients, moments, structure and the recipe's tensors."""
    total = summary(model, optimizer).total
    if recipe is not None:
        total += sum(tensor.nbytes for tensor in _tensors(recipe.state))
    return total


def kept_entries(layers: Mapping[str, nn.Module]) -> tuple[int, int]:
    """Return the entries that prepared layers use in a forward pass, and all their entries."""
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
