"""train_subset() and merge_subset(): models of which chosen entries train, and dense ones again."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from gossamer.arguments import check
from gossamer.errors import PatternError
from gossamer.nn.layers.replacing import is_convolution
from gossamer.nn.layers.subset import SubsetLinear, has_subset
from gossamer.nn.left_dense import is_dense_linear
from gossamer.nn.swapping import replace_modules


def train_subset(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Freeze a model but for chosen entries of its dense weights, in place.

    Each named layer becomes a `gossamer.nn.SubsetLinear`, which computes the same. Gradients and
    optimizer state exist for the chosen entries alone. Nothing else trains; what should train too
    is let loose by `requires_grad_()`. Build the optimizer afterwards.

    Args:
        model: any module; if it is such a layer itself, use the returned module.
        masks: bool, True = trained, by the names of linear layers and convolutions, in the shapes
            of their weights as [out, in, ...]; `gossamer.pruning.changed` and `chosen` make them.

    Returns:
        The model.

    Raises:
        PatternError: a name is that of no such layer, a mask has no entry, or a weight is shared
            with another module.
        ShapeError, DTypeError: a mask does not fit. Nothing changes in either case.

    Reference:
        Mukherjee et al. 2025, "Reinforcement Learning Finetunes Small Subnetworks in Large Language
        Models"; Sung, Nair and Raffel 2021, "Training Neural Networks with Fixed Sparse Masks".

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> model = train_subset(model, {"0": torch.eye(2, 4) > 0})
        >>> [tuple(p.shape) for p in model.parameters() if p.requires_grad]
        [(2,)]
    """
    check(train_subset, locals())
    layers = dict(model.named_modules(remove_duplicate=False))
    holders: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    new: dict[nn.Module, nn.Module] = {}
    for name, mask in masks.items():
        layer = layers.get(name)
        if layer is None or not (is_dense_linear(layer) or is_convolution(layer)):
            known = [n for n, m in layers.items() if is_dense_linear(m) or is_convolution(m)]
            raise PatternError(
                f"train_subset got a mask for {name!r}, which is no dense linear layer or "
                f"convolution; the model has {', '.join(known[:5]) or 'none'}"
            )
        if holders[id(layer.weight)] > 1:
            raise PatternError(
                f"train_subset got a mask for {name!r}, whose weight is shared with another "
                "module, which would not see what trains: leave it out"
            )
        new[layer] = SubsetLinear.from_dense(layer, mask)
    trained = {parameter for layer in new.values() for parameter in layer.trained.parameters()}  # type: ignore[union-attr]
    model = replace_modules(model, new)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in trained)
    return model


def merge_subset(model: nn.Module) -> nn.Module:
    """Put torch's dense layers in the places of `SubsetLinear`s, in place; outputs are unchanged.

    Args:
        model: any module; if it is such a layer itself, use the returned module.

    Returns:
        The model, whose new weights train as a whole.

    Raises:
        PatternError: there is no such layer.
    """
    check(merge_subset, locals())
    new = {layer: layer.to_dense() for layer in model.modules() if has_subset(layer)}
    if not new:
        raise PatternError("merge_subset found no SubsetLinear; train_subset makes them")
    return replace_modules(model, new)


__all__ = ["merge_subset", "train_subset"]
