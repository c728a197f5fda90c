"""Soups: one model from several that were trained apart from the same sparse start.

Models of equal masks are averaged value by value, so that the soup is as sparse as each of them.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gossamer.arguments import Count, check
from gossamer.errors import ArgumentError, StructureError
from gossamer.nn import MaskedLayer
from gossamer.weight.sharding import is_sharded

__all__ = ["Soup", "barrier", "check_alike", "greedy_soup", "soup"]


class Soup(NamedTuple):
    """What `greedy_soup` returns.

    Attributes:
        model: the average.
        members: places of its ingredients in the list that was given, best first.
        score: of the average.
    """

    model: nn.Module
    members: list[int]
    score: float


@torch.no_grad()
def soup(models: Sequence[nn.Module], shares: Sequence[float] | None = None) -> nn.Module:
    """Return the average of models that have the same masks.

    Parameters are averaged. Buffers are those of the first model: call
    `torch.optim.swa_utils.update_bn(loader, model)` where there is batch normalisation. Build a new
    optimizer: moments of several trainings must not be averaged.

    With three or more retrainings of one pruned model, which differ in the order of their batches,
    as ingredients, and the soup as the start of the next pruning, this is a Sparse Model Soup.

    Args:
        models: at least one, of equal layers, sizes, dtypes and masks. None of them changes.
        shares: of each model, which sum to 1; None gives all the same.

    Returns:
        A new model.

    Raises:
        ArgumentError: no models, or models, shares or sizes that do not fit each other.
        StructureError: two models keep other entries, or choose their masks by their weights.

    Reference:
        Wortsman et al. 2022, "Model soups"; Zimmer, Spiegel and Pokutta 2024, "Sparse Model Soups:
        A Recipe for Improved Pruning via Model Averaging".

    Example:
        >>> import gossamer
        >>> one = gossamer.SparseLinear(8, 4, pattern="2:4")
        >>> other = copy.deepcopy(one)
        >>> _ = other.weight.values.data.zero_()
        >>> torch.equal(soup([one, other]).weight.values, one.weight.values / 2)
        True
    """
    check(soup, {"shares": shares})
    models = list(models)
    if not models:
        raise ArgumentError("soup got no models; give at least one")
    shares = [1 / len(models)] * len(models) if shares is None else list(shares)
    if len(shares) != len(models) or abs(sum(shares) - 1) > 1e-6:
        raise ArgumentError(
            f"soup got shares {shares} for {len(models)} models; give one per model, with the sum 1"
        )
    for model in models[1:]:
        check_alike(models[0], model)
    result = copy.deepcopy(models[0])
    lists = [list(model.parameters()) for model in models]
    for target, *sources in zip(result.parameters(), *lists, strict=True):
        target.copy_(_mean(sources, shares))
    return result


def greedy_soup(models: Sequence[nn.Module], score: Callable[[nn.Module], float]) -> Soup:
    """Add models to a soup, best first, as long as its score does not fall.

    Args:
        models: see `soup`.
        score: larger is better, such as the accuracy on a validation set, or minus a loss. Where
            there is batch normalisation, let it call `update_bn` first.

    Returns:
        The soup, its members and its score, which is at least that of the best model.

    Raises:
        ArgumentError, StructureError: see `soup`.

    Reference:
        Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves
        accuracy without increasing inference time", recipe 1.

    Example:
        >>> models = [nn.Linear(1, 1, bias=False) for _ in range(3)]
        >>> for model, value in zip(models, (0.0, 10.0, 3.0)):
        ...     _ = model.weight.data.fill_(value)
        >>> found = greedy_soup(models, lambda model: -abs(model.weight.item() - 2))
        >>> found.members, found.score
        ([2, 0], -0.5)
    """
    models = list(models)
    soup(models)  # all checks, before anything is scored
    scores = [score(model) for model in models]
    order = sorted(range(len(models)), key=lambda i: -scores[i])
    members, best = order[:1], scores[order[0]]
    result = soup([models[members[0]]])
    for i in order[1:]:
        tried = soup([models[k] for k in (*members, i)])
        found = score(tried)
        if found >= best:
            members, best, result = [*members, i], found, tried
    return Soup(result, members, best)


def barrier(
    one: nn.Module, other: nn.Module, loss: Callable[[nn.Module], float], points: Count = 11
) -> float:
    """Return the barrier of the loss between two models, along the straight line.

    It is the largest L(a w + (1 - a) v) - a L(w) - (1 - a) L(v) over equally spaced a in [0, 1].
    About 0 means that the models lie in one basin, so that their soup is good.

    Args:
        one: a model with the weights w.
        other: a model with the weights v; see `soup`.
        loss: of a model.
        points: number of a, the ends included; at least 2.

    Returns:
        The barrier, at least 0.

    Raises:
        ArgumentError, StructureError: see `soup`; or fewer than 2 points.

    Reference:
        Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis"; with the
        line between both losses as in Entezari et al. 2022, definition 2.2.
    """
    check(barrier, {"points": points})
    if points < 2:
        raise ArgumentError(f"barrier got points={points}; it must be at least 2")
    ends = loss(one), loss(other)
    highest = 0.0
    for i in range(1, points - 1):
        a = i / (points - 1)
        between = loss(soup([one, other], [a, 1 - a]))
        highest = max(highest, between - a * ends[0] - (1 - a) * ends[1])
    return highest


def _mean(sources: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    dtype = torch.promote_types(sources[0].dtype, torch.float32)
    total = torch.zeros_like(sources[0], dtype=dtype)
    for source, share in zip(sources, shares, strict=True):
        total.add_(source.to(dtype), alpha=share)
    return total


def check_alike(first: nn.Module, other: nn.Module) -> None:
    """Raise unless two models have equal layers, sizes, dtypes and masks; see `soup`."""
    pairs = itertools.zip_longest(first.named_parameters(), other.named_parameters())
    for mine, theirs in pairs:
        shown = [
            None if p is None else (p[0], tuple(p[1].shape), p[1].dtype) for p in (mine, theirs)
        ]
        if shown[0] != shown[1]:
            if mine and theirs and mine[0] == theirs[0] and mine[0].endswith("values"):
                raise StructureError(
                    f"soup: {mine[0]} has {mine[1].numel()} values in one model and "
                    f"{theirs[1].numel()} in another; average models of one mask"
                )
            raise ArgumentError(
                f"soup got models that differ: one has {shown[0]}, another {shown[1]}; give models "
                "of one architecture"
            )
        if mine and is_sharded(mine[1]):
            raise ArgumentError(
                f"soup got a model whose {mine[0]} is sharded; save it and load it without shards"
            )
    others = dict(other.named_modules())
    for name, layer in first.named_modules():
        if not isinstance(layer, MaskedLayer):
            continue
        twin = others.get(name)
        for each in (layer, twin):
            if getattr(each, "reselect_each_forward", False):
                raise StructureError(
                    f"soup: layer {name!r} chooses its mask by its weight, and an average would "
                    "choose another one; call recipe.finish(model) first"
                )
        if not isinstance(twin, MaskedLayer) or not torch.equal(layer.mask(), twin.mask()):
            raise StructureError(
                f"soup: the masks of layer {name!r} differ, so that the average would be denser; "
                "average models that were trained from one pruned model with a fixed mask"
            )
