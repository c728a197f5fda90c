"""Source masks: a recipe with dense weights searches its masks inside a fixed one.

What the source drops is 0 before the training and after each step, so that no selection by
magnitude takes it before what the source keeps (Gadhikar et al. 2023, "Why Random Pruning Is All We
Need to Start Sparse").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from gossamer.backend import check_array
from gossamer.errors import PatternError
from gossamer.masks import mask_from_score, random_mask
from gossamer.nn import MaskedLayer
from gossamer.patterns import Pattern, parse_pattern
from gossamer.weight.checks import check_like

__all__ = ["Source", "confine", "find_sources", "give_source"]

Source: TypeAlias = str | Pattern | Mapping[str, Tensor]

# The attribute of a prepared layer with its source mask, until a recipe is attached.
_SOURCE = "_gossamer_source"


def give_source(layer: MaskedLayer, name: str, source: Source) -> None:
    """Note the source mask of a layer that a recipe has just made; weights do not change.

    Args:
        layer: the layer, with a dense weight.
        name: its name in the model.
        source: a pattern, of which a mask is drawn by torch's generator, or bool masks
            [out_features, in_features] by name.

    Raises:
        PatternError: there is no mask of this name, or too few entries for the layer's target.
        DTypeError, ShapeError: a mask is no mask of the layer.
    """
    shape = torch.Size([layer.out_features, layer.in_features])
    if isinstance(source, Mapping):
        if name not in source:
            raise PatternError("source= has no mask of this name; add one or exclude the layer")
        mask: Tensor = check_array(source[name], "source", rank=2, dtypes=(torch.bool,))
        check_like(mask, "source", shape)
        mask = mask.clone()
    else:
        seed = int(torch.randint(2**63 - 1, (), device="cpu"))
        mask = random_mask((shape[0], shape[1]), parse_pattern(source), seed)
    best = mask_from_score(mask.float(), layer.target)
    if bool((best & ~mask).any()):
        raise PatternError(
            f"prepare got a source that keeps {int(mask.sum())} of {mask.numel()} entries, in "
            f"which no mask of pattern {layer.target} fits: choose a denser source, or one such as "
            "'3:4' for '2:4'"
        )
    object.__setattr__(layer, _SOURCE, mask)


def find_sources(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the source masks that `give_source` has noted, by the layers' names."""
    return {
        name: m for name, layer in layers.items() if (m := vars(layer).get(_SOURCE)) is not None
    }


@torch.no_grad()
def confine(layers: Mapping[str, nn.Module], masks: Mapping[str, Tensor]) -> None:
    """Zero what source masks drop, in weights and gradients.

    Args:
        layers: by name.
        masks: bool [out_features, in_features] by name, for some of them.
    """
    for name, mask in masks.items():
        layer = layers[name]
        assert isinstance(layer, MaskedLayer)  # noqa: S101 - it was given a source
        for tensor in (layer.entries.detach(), layer.entries.grad):
            if tensor is not None:
                # Not a product: NaN times 0 is NaN.
                tensor.masked_fill_(~mask, 0.0)
