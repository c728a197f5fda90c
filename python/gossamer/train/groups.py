"""Parameter groups of an optimizer: weight decay, a recipe's groups, and penalties."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from gossamer.nn import MaskedLayer
from gossamer.nn import parameter_groups as nn_groups
from gossamer.nn.globs import covers
from gossamer.prox import Penalty
from gossamer.recipes import Recipe


def parameter_groups(
    model: nn.Module, weight_decay: float, scale_lr: float = 0.0
) -> list[dict[str, Any]]:
    """Split the parameters of a GPT by weight decay and learning rate, for an optimizer.

    As `gossamer.parameter_groups`, but embeddings do not decay either.

    Args:
        model: any module.
        weight_decay: weight decay of the parameters that decay.
        scale_lr: exponent of the density in the learning rate of a weight with a mask.

    Returns:
        Groups for `torch.optim`, in the model's order of parameters.

    Example:
        >>> [len(group["params"]) for group in parameter_groups(nn.Linear(2, 2), 0.1)]
        [1, 1]
    """
    return nn_groups(model, weight_decay, undecayed=(nn.Embedding,), scale_lr=scale_lr)


def recipe_groups(
    recipe: Recipe, model: nn.Module, weight_decay: float, scale_lr: float = 0.0
) -> list[dict[str, Any]]:
    """Return the recipe's parameter groups, each split by weight decay.

    A group keeps a weight decay that the recipe sets.

    Args:
        recipe: recipe of the model.
        model: model prepared by the recipe.
        weight_decay: weight decay of matrices and the values of sparse weights.
        scale_lr: exponent of the density in the learning rate of a weight with a mask.

    Returns:
        Groups for an optimizer.
    """
    exempt = {
        id(parameter)
        for group in parameter_groups(model, weight_decay)
        if group["weight_decay"] == 0.0
        for parameter in group["params"]
    }
    split: list[dict[str, Any]] = []
    for group in recipe.parameters(model, scale_lr):
        parameters = group["params"]
        if "weight_decay" in group:
            split.append(group)
            continue
        for decay in (weight_decay, 0.0):
            part = [p for p in parameters if (id(p) in exempt) == (decay == 0.0)]
            if part:
                split.append({**group, "params": part, "weight_decay": decay})
    return split


def penalised_groups(
    model: nn.Module, groups: list[dict[str, object]], penalty: Penalty, exclude: tuple[str, ...]
) -> list[dict[str, object]]:
    """Give the weights of the linear layers a penalty.

    Args:
        model: any module.
        groups: parameter groups, as `parameter_groups` returns them.
        penalty: penalty on a matrix; on a sparse weight it acts on the values.
        exclude: globs of module names; matching modules have no penalty.

    Returns:
        Groups for `ProxAdamW` with named parameters: the penalised ones after the rest of
        their group.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    penalties = {id(p): own for p, own in _penalised(model, penalty, exclude)}
    split: list[dict[str, object]] = []
    for group in groups:
        parameters: Any = group["params"]
        named = [(names[id(parameter)], parameter) for parameter in parameters]
        if rest := [pair for pair in named if id(pair[1]) not in penalties]:
            split.append(group | {"params": rest})
        split += [
            group | {"params": [pair], "penalty": penalties[id(pair[1])]}
            for pair in named
            if id(pair[1]) in penalties
        ]
    return split


def follow_groups(scheduler: LambdaLR) -> None:
    """Register the groups that a recipe added to the optimizer with its scheduler.

    Their present learning rate is taken as the scheduled share of their base learning rate.
    """
    first = scheduler.optimizer.param_groups[0]
    for group in scheduler.optimizer.param_groups[len(scheduler.base_lrs) :]:
        # A recipe gives new parameters the learning rate of their original group.
        share = group["lr"] / first["lr"] if first["lr"] else 1.0
        group.setdefault("initial_lr", first["initial_lr"] * share)
        scheduler.base_lrs.append(group["initial_lr"])
        scheduler.lr_lambdas.append(scheduler.lr_lambdas[0])


def _penalised(
    model: nn.Module, penalty: Penalty, exclude: tuple[str, ...]
) -> Iterator[tuple[Tensor, Penalty]]:
    for name, module in model.named_modules():
        if any(covers(glob, name) for glob in exclude):
            continue
        if isinstance(module, MaskedLayer):
            sparse = module.sparse_weight
            yield module.entries, penalty if sparse is None else penalty.on(sparse)
        elif isinstance(module, nn.Linear):
            yield module.weight, penalty
