"""with_spp() and merge_spp(): adapters that keep the mask, put into a whole model and merged."""

from __future__ import annotations

import torch
from torch import nn

from gossamer.arguments import Positive, Size, check
from gossamer.errors import PatternError
from gossamer.nn.globs import Globs, as_globs, check_globs, covers
from gossamer.nn.layers.preserving import SPPLinear, has_spp, takes_spp
from gossamer.nn.swapping import replace_modules


def with_spp(
    model: nn.Module,
    rank: Size = 16,
    scale: Positive = 2.0,
    include: Globs = ("*",),
    exclude: Globs = (),
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Freeze a model, and let its `SparseLinear` layers train by small matrices, in place.

    Each becomes a `gossamer.nn.SPPLinear`, which computes the same at first. Nothing else trains
    then; what should train too is let loose by `requires_grad_()`. Build the optimizer afterwards.

    Args:
        model: any module with `SparseLinear` layers; if it is one itself, use the returned module.
        rank: rows of A, see `SPPLinear`; for the published 16 at width 2048 and 2:4, 1.7 % of the
            kept entries train.
        scale: s, see `SPPLinear`.
        include: globs of the layers.
        exclude: globs of the layers that stay frozen; they win over `include`.
        generator: generator that draws A; None is torch's own.

    Returns:
        The model.

    Raises:
        PatternError: a glob matches nothing, there is no such layer, two layers share a weight (a
            merge could not serve both), or the rank is too large for a layer; nothing changes.

    Reference:
        Lu et al. 2024, "SPP: Sparsity-Preserved Parameter-Efficient Fine-Tuning for Large Language
        Models".

    Example:
        >>> import gossamer
        >>> model = gossamer.sparsify(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), "2:4")
        >>> model = with_spp(model, rank=2)
        >>> merge_spp(model)[0].weight.nnz
        16
    """
    check(with_spp, locals())
    found = {
        name: layer
        for name, layer in model.named_modules(remove_duplicate=False)
        if takes_spp(layer)
    }
    inside, outside = as_globs(include, "include"), as_globs(exclude, "exclude")
    named = {"include": inside, "exclude": outside}
    check_globs(model, named, "sparse layers", list(found))
    layers = {
        name: layer
        for name, layer in found.items()
        if any(covers(glob, name) for glob in inside)
        and not any(covers(glob, name) for glob in outside)
    }
    if not layers:
        raise PatternError(
            "with_spp found no SparseLinear among the chosen layers: prune the model first, for "
            'example by gossamer.sparsify(model, "2:4")'
        )
    owners: dict[int, str] = {}
    for name, layer in found.items():
        other = owners.setdefault(id(layer.weight), name)
        if found[other] is not layer and {name, other} & layers.keys():
            raise PatternError(
                f"with_spp got layers {other!r} and {name!r}, which share a weight; a merge of the "
                "scales of one would change the other: exclude both"
            )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    new = {}
    try:
        for layer in dict.fromkeys(layers.values()):
            weight, bias = layer.weight, layer.bias
            new[layer] = SPPLinear.of_parts(weight, bias, rank, scale, generator)
        for parameter in trained:
            parameter.requires_grad_(False)
        return replace_modules(model, new)
    except Exception:
        for parameter in trained:
            parameter.requires_grad_(True)
        raise


def merge_spp(model: nn.Module) -> nn.Module:
    """Put `SparseLinear` layers with the scaled values in the places of `SPPLinear`s, in place.

    Masks are unchanged, and outputs too. The parameters are new and frozen; to train the whole
    model again, call `model.requires_grad_()`.

    Args:
        model: any module; if it is such a layer itself, use the returned module.

    Returns:
        The model.

    Raises:
        PatternError: there is no such layer.
    """
    check(merge_spp, locals())
    new = {layer: layer.merge() for layer in model.modules() if has_spp(layer)}
    if not new:
        raise PatternError("merge_spp found no SPPLinear; with_spp makes them")
    return replace_modules(model, new)


__all__ = ["merge_spp", "with_spp"]
