"""Weights that torch computes anew in each call: pruned, normed, parametrized ones."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from gossamer.nn.layers.linear import is_conv1d

# What a parametrization of torch is called by users.
_NAMES = {"_WeightNorm": "weight_norm", "_SpectralNorm": "spectral_norm"}
_REMOVE = "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"


def why_computed(module: nn.Module) -> str | None:
    """Return why the weight of a linear layer or convolution is computed, and what to do.

    Returns:
        A text for a warning; None if the weight is a parameter, or the layer another module.
    """
    if not (isinstance(module, nn.Linear | _ConvNd) or is_conv1d(module)):
        return None
    if parametrize.is_parametrized(module):
        lists: Any = module.parametrizations
        kinds = [type(part).__name__ for parts in lists.values() for part in parts]
        by = " and ".join(_NAMES.get(kind, kind) for kind in kinds)
        return f"computed by {by}; call {_REMOVE} first"
    pruned = []
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            return _computed_by("weight_norm")
        if isinstance(hook, SpectralNorm):
            return (
                "computed by spectral_norm; call torch.nn.utils.remove_spectral_norm(layer) first"
            )
        if isinstance(hook, BasePruningMethod):
            pruned.append(str(hook._tensor_name))
    if pruned in ([], ["weight"]):
        return PRUNED if pruned else None
    other = next(name for name in pruned if name != "weight")
    return f"its {other} is pruned; call torch.nn.utils.prune.remove(layer, {other!r}) first"


def _computed_by(name: str) -> str:
    return f"computed by {name}; call torch.nn.utils.remove_{name}(layer) first"


PRUNED = (
    'pruned by torch.nn.utils.prune; the pattern "nonzeros" keeps exactly this mask, and '
    "prune.remove(layer, 'weight') allows another"
)

__all__ = ["PRUNED", "why_computed"]
