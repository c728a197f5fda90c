"""parameter_groups(): weight decay and learning rate per parameter, and a warning about decay.

The values of a sparse weight are a vector. Code that sorts parameters by their number of dimensions
mistakes them for biases and gives them no decay: then the first step warns.
"""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gossamer.arguments import NotNegative, check
from gossamer.nn.layers.base import MaskedLayer
from gossamer.nn.lr_scaling import exponent_of, scaled_groups
from gossamer.weight.sparse_weight import SparseWeight, alive_weights

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)
_CHECKED: WeakSet[torch.optim.Optimizer] = WeakSet()


def parameter_groups(
    model: nn.Module,
    weight_decay: NotNegative = 0.0,
    undecayed: tuple[type[nn.Module], ...] = (),
    scale_lr: float | bool = False,
) -> list[dict[str, Any]]:
    """Split the parameters of a model by weight decay and, on request, by learning rate.

    Tensors of two or more dimensions, the values of sparse weights and the dense weights of masked
    layers decay. Biases, the parameters of normalisation layers, other vectors and scalars, and
    the learned thresholds of masked layers do not.

    With `scale_lr` each weight with a mask has a group of its own, and learns at the rate
    lr * density^-exponent: the fewer inputs an output sums, the larger the steps that move it as
    far. The optimizer's `lr` remains the one to set and to schedule, for all groups alike. The
    factor is applied during the step only and stands in the group as "lr_factor"; a recipe that
    prunes keeps it up to date. Weight decay is multiplied by the learning rate, as ever.

    Args:
        model: any module.
        weight_decay: weight decay of the parameters that decay.
        undecayed: module classes whose own parameters do not decay either, such as `nn.Embedding`.
        scale_lr: the exponent, at least 0: True is 1, as published; False is 0 and changes nothing.

    Returns:
        Groups for an optimizer, in the model's order; an empty group is left out.

    Raises:
        ArgumentError: `scale_lr` is negative or not finite.

    Reference:
        Dey et al. 2024, "Sparse maximal update parameterization: A holistic approach to sparse
        training dynamics".

    Example:
        >>> from gossamer import SparseLinear
        >>> model = nn.Sequential(SparseLinear(8, 8, pattern="2:4"), nn.LayerNorm(8))
        >>> for group in parameter_groups(model, weight_decay=0.1):
        ...     print(group["weight_decay"], [tuple(p.shape) for p in group["params"]])
        0.1 [(32,)]
        0.0 [(8,), (8,), (8,)]
        >>> groups = parameter_groups(model, weight_decay=0.1, scale_lr=True)
        >>> [group.get("lr_factor") for group in groups]
        [2.0, None]
    """
    check(parameter_groups, locals())
    decayed: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                wanted = not isinstance(module, undecayed) and _decays(module, name, parameter)
                (decayed if wanted else rest).append(parameter)
    groups = [(decayed, weight_decay), (rest, 0.0)]
    split = [{"params": params, "weight_decay": decay} for params, decay in groups if params]
    return scaled_groups(split, model, exponent_of(scale_lr, "parameter_groups"))


def _decays(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    if isinstance(module, SparseWeight):
        return True
    if isinstance(module, MaskedLayer):
        return parameter is module.entries
    return parameter.dim() >= 2 and name != "bias" and not isinstance(module, _NORMS)


def warn_of_undecayed_values(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Warn once per optimizer if it decays other parameters but not its sparse values."""
    if optimizer in _CHECKED:
        return
    _CHECKED.add(optimizer)
    # A group may be reserved for later parameters: an empty one decays nothing.
    groups = [group for group in optimizer.param_groups if group["params"]]
    if all(group.get("weight_decay", 0.0) == 0.0 for group in groups):
        return
    values = {id(weight.values) for weight in alive_weights()}
    count = sum(
        id(parameter) in values
        for group in groups
        if group.get("weight_decay", 0.0) == 0.0
        for parameter in group["params"]
    )
    if count:
        warnings.warn(
            f"{type(optimizer).__name__} has weight decay in some groups, but none for the values "
            f"of {count} sparse weight(s). They are vectors (dim() is 1) and hold a matrix's "
            "entries: build the groups with gossamer.parameter_groups(model, weight_decay=...), "
            "or ignore this warning if that is intended",
            UserWarning,
            stacklevel=2,
        )


register_optimizer_step_pre_hook(warn_of_undecayed_values)

__all__ = ["parameter_groups"]
