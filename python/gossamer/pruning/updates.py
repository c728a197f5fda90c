"""Which entries of a model a training changes: masks, overlaps of masks, ranks of updates.

A training in float32 moves every entry a little, so changes are counted with a tolerance, or after
rounding to bfloat16, in which small updates vanish.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gossamer.arguments import NotNegative, Share, check
from gossamer.errors import ArgumentError
from gossamer.masks import top
from gossamer.pruning.scores import oriented, weights_of

__all__ = ["Overlap", "changed", "chosen", "overlap", "stable_ranks"]


@dataclass(frozen=True)
class Overlap:
    """What two sets of entries have in common.

    Args:
        first: share of the entries of the first set that are in the second.
        second: share of those of the second that are in the first.
        chance: `first` for a random set of the second's size, and `second` for one of the first's.
    """

    first: float
    second: float
    chance: tuple[float, float]


def changed(
    before: nn.Module,
    after: nn.Module,
    tolerance: NotNegative = 0.0,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Return which entries of the linear layers and convolutions a training has changed.

    Args:
        before: the model before the training.
        after: the model after it, with the same layers, all dense.
        tolerance: entries that moved by at most this count as unchanged.
        dtype: dtype to which both are rounded first, such as torch.bfloat16; None is their own.

    Returns:
        bool masks by layer name, True = changed, in the shapes of the weights; for
        `gossamer.nn.train_subset`.

    Raises:
        ArgumentError: the models have other layers or shapes.

    Reference:
        Mukherjee et al. 2025, "Reinforcement Learning Finetunes Small Subnetworks in Large Language
        Models", section 3 (update sparsity, with a tolerance of 1e-5 in bfloat16).

    Example:
        >>> import copy
        >>> first = nn.Sequential(nn.Linear(2, 1))
        >>> second = copy.deepcopy(first)
        >>> second[0].weight.data[0, 1] += 1.0
        >>> changed(first, second)["0"].tolist()
        [[False, True]]
    """
    check(changed, locals())
    found = {}
    for name, update in _updates(before, after, "changed", dtype).items():
        found[name] = update.abs() > tolerance
    return found


def chosen(scores: Mapping[str, Tensor], share: Share) -> dict[str, Tensor]:
    """Return the entries with the highest scores of all layers together.

    Args:
        scores: by layer name, such as `gossamer.pruning.fisher` returns; of equal ones the first
            is chosen.
        share: of all entries, in [0, 1].

    Returns:
        bool masks by name in the shapes of the scores; layers without an entry are left out.

    Raises:
        ArgumentError: there are no scores.

    Example:
        >>> {n: m.tolist() for n, m in chosen({"a": torch.tensor([[3.0, 1.0]]),
        ...                                    "b": torch.tensor([[0.0, 2.0]])}, 0.5).items()}
        {'a': [[True, False]], 'b': [[False, True]]}
    """
    check(chosen, locals())
    if not scores:
        raise ArgumentError("chosen got no scores; give at least those of one layer")
    flat = torch.cat([score.reshape(-1).double() for score in scores.values()])
    kept = top(flat[None], round(share * len(flat)))[0]
    parts = torch.split(kept, [score.numel() for score in scores.values()])
    masks = {
        name: part.view(score.shape)
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }
    return {name: mask for name, mask in masks.items() if bool(mask.any())}


def overlap(first: Mapping[str, Tensor], second: Mapping[str, Tensor], total: int = 0) -> Overlap:
    """Return what two sets of entries have in common, beside what chance would give.

    Args:
        first: bool masks by name.
        second: bool masks by name; a name that only one of the two has is empty in the other.
        total: number of all entries; 0 counts those of all masks.

    Raises:
        ArgumentError: a set is empty, or masks of one name have different shapes.

    Example:
        >>> first, second = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]]).bool()
        >>> overlap({"0": first}, {"0": second})
        Overlap(first=0.5, second=0.5, chance=(0.5, 0.5))
    """
    check(overlap, locals())
    for name in first.keys() & second.keys():
        if first[name].shape != second[name].shape:
            raise ArgumentError(
                f"overlap got masks of {name!r} of shapes {list(first[name].shape)} and "
                f"{list(second[name].shape)}; those of one model are needed"
            )
    sizes = {n: m.numel() for masks in (first, second) for n, m in masks.items()}
    total = total or sum(sizes.values())
    mine, theirs = (sum(int(m.sum()) for m in masks.values()) for masks in (first, second))
    if not mine or not theirs:
        raise ArgumentError("overlap got a set without an entry; nothing can be compared")
    both = sum(int((first[n] & second[n]).sum()) for n in first.keys() & second.keys())
    return Overlap(both / mine, both / theirs, (theirs / total, mine / total))


def stable_ranks(before: nn.Module, after: nn.Module) -> dict[str, float]:
    """Return the stable rank of each layer's update, ||D||_F^2 / ||D||_2^2.

    It is at most the rank, and not moved by small singular values. Filters are taken as matrices
    [out, ...]; a layer that did not change has 0.

    Args:
        before: the model before a training.
        after: the model after it, with the same layers, all dense.

    Raises:
        ArgumentError: the models have other layers or shapes.
    """
    check(stable_ranks, locals())
    found = {}
    for name, update in _updates(before, after, "stable_ranks", None).items():
        values = torch.linalg.svdvals(update.flatten(1).double()).square()
        found[name] = float(values.sum() / values.max()) if bool(values.max() > 0) else 0.0
    return found


@torch.no_grad()
def _updates(
    before: nn.Module, after: nn.Module, who: str, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    old, new = weights_of(before, who), weights_of(after, who)
    if {n: w.shape for n, w in old.items()} != {n: w.shape for n, w in new.items()}:
        raise ArgumentError(
            f"{who} got models with different layers or shapes; give one model before and after a "
            "training, dense in both cases (gossamer.nn.merge_subset)"
        )
    pairs = {name: (old[name], new[name]) for name in old}
    if dtype is not None:
        pairs = {name: (a.to(dtype), b.to(dtype)) for name, (a, b) in pairs.items()}  # type: ignore[misc]
    return oriented(before, {name: b.float() - a.float() for name, (a, b) in pairs.items()})
