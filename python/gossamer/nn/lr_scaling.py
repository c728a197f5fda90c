"""The learning rate of a sparse weight follows its density d: rate = lr * d^-exponent.

A group of such a weight holds the factor. Hooks of torch multiply the group's learning rate by it
for the time of a step only, so that schedulers, loggers and state dicts see the rate without it.

Dey et al. 2024, "Sparse maximal update parameterization": exponent 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from gossamer.errors import ArgumentError
from gossamer.nn.layers.base import MaskedLayer
from gossamer.weight.sparse_weight import SparseWeight

__all__ = ["exponent_of", "follow_density", "scaled_groups", "unscaled_lr"]

_FACTOR, _EXPONENT, _UNSCALED = "lr_factor", "lr_exponent", "unscaled_lr"


def exponent_of(scale_lr: float, who: str) -> float:
    """Return the exponent that an argument scale_lr stands for; True is 1.

    Raises:
        ArgumentError: it is not a finite number of at least 0.
    """
    if not isinstance(scale_lr, int | float) or not (math.isfinite(scale_lr) and scale_lr >= 0):
        raise ArgumentError(
            f"{who} got scale_lr={scale_lr!r:.40}; it is the exponent of the density, at least 0: "
            "choose True, which is 1, or False"
        )
    return float(scale_lr)


def scaled_groups(
    groups: Iterable[Mapping[str, Any]], model: nn.Module, exponent: float
) -> list[dict[str, Any]]:
    """Give each weight with a mask a group of its own, whose learning rate follows its density.

    Args:
        groups: parameter groups of the model, each with a list of parameters.
        model: any module.
        exponent: of the density; 0 changes nothing.

    Returns:
        The groups in their order; the weights stand after the rest of their group.
    """
    if not exponent:
        return [dict(group) for group in groups]
    densities = _densities(model.modules())
    split: list[dict[str, Any]] = []
    for group in groups:
        rest = [p for p in group["params"] if id(p) not in densities]
        if rest or not group["params"]:
            split.append({**group, "params": rest})
        split += [
            {**group, "params": [p], _EXPONENT: exponent, _FACTOR: densities[id(p)] ** -exponent}
            for p in group["params"]
            if id(p) in densities
        ]
    return split


def follow_density(optimizer: torch.optim.Optimizer, layers: Iterable[nn.Module]) -> None:
    """Set the factors of an optimizer's groups by the present densities of some layers."""
    groups = [group for group in optimizer.param_groups if _EXPONENT in group]
    if not groups:
        return
    densities = _densities(module for layer in layers for module in layer.modules())
    for group in groups:
        density = densities.get(id(group["params"][0]))
        if density is not None:
            group[_FACTOR] = density ** -group[_EXPONENT]


def unscaled_lr(group: Mapping[str, Any]) -> Any:
    """Return the learning rate of a group without its factor, during a step or outside."""
    return group.get(_UNSCALED, group["lr"])


def _densities(modules: Iterable[nn.Module]) -> dict[int, float]:
    """Density by id of the parameter of each weight with a mask; 1 of one that keeps nothing."""
    found: dict[int, float] = {}
    for module in modules:
        if isinstance(module, SparseWeight):
            found[id(module.values)] = module.density or 1.0
        elif isinstance(module, MaskedLayer) and module.sparse_weight is None:
            entries = module.entries
            found[id(entries)] = module.used_entries / max(entries.numel(), 1) or 1.0
    return found


def _scale(optimizer: torch.optim.Optimizer, *_: object) -> None:
    for group in optimizer.param_groups:
        if _FACTOR in group:
            # A step that raised has left its rate scaled, and an optimizer in an optimizer shares
            # its groups: the factor is applied once.
            group[_UNSCALED] = unscaled_lr(group)
            group["lr"] = group[_UNSCALED] * group[_FACTOR]


def _restore(optimizer: torch.optim.Optimizer, *_: object) -> None:
    for group in optimizer.param_groups:
        if _UNSCALED in group:
            group["lr"] = group.pop(_UNSCALED)


register_optimizer_step_pre_hook(_scale)
register_optimizer_step_post_hook(_restore)
