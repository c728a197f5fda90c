"""How the mask of each pattern is chosen from scores, and what guards a selection of others.

A selection maps the scores of the slots to those that are kept. The package's own are registered
beside those of others: see `gossamer.patterns.register_sparsifier`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.arguments import check
from gossamer.backend import check_array
from gossamer.errors import ArgumentError, PatternError, StructureError
from gossamer.masks.grouped import select_grouped
from gossamer.masks.ranks import rank_keys
from gossamer.patterns import (
    NM,
    Block,
    GroupedNM,
    Nonzeros,
    Pattern,
    Unstructured,
    register_sparsifier,
    selection_of,
)

__all__ = ["is_own", "obeys", "select", "spread", "top"]

_SAMPLE = 4096
_MARGIN = 160  # 5 standard deviations of a rank in the sample
_OWN = (NM, GroupedNM, Unstructured, Block, Nonzeros)


# --8<-- [start:selection]
def top(score: Tensor, k: int) -> Tensor:
    """Return the k largest of each row; of equal ones the lower index, and NaN before all.

    Args:
        score: [rows, slots], float32 or float64.
        k: the number to keep of each row, at most `slots`.

    Returns:
        bool [rows, slots].

    Raises:
        DTypeError, ShapeError: not such a tensor.
        ArgumentError: k is negative or above `slots`.

    Example:
        >>> top(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 2).tolist()
        [[False, True, True, False]]
    """
    check(top, locals())
    check_array(score, "top: score", rank=2, dtypes=(torch.float32, torch.float64))
    if not 0 <= k <= score.shape[1]:
        raise ArgumentError(f"top got k={k} of {score.shape[1]} slots; 0 <= k <= slots must hold")
    if k == 0 or score.numel() == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    score = rank_keys(score)
    least = _least_kept(score, k)
    kept = score > least
    tied = score == least
    room = k - kept.sum(dim=1, keepdim=True)
    if bool((tied.sum(dim=1, keepdim=True) == room).all()):
        return kept.logical_or_(tied)
    return kept | (tied & (tied.cumsum(dim=1) <= room))


def _least_kept(score: Tensor, k: int) -> Tensor:
    """Return the k-th largest of each row, [rows, 1].

    Of a long row, a sample says between which two values it lies, so that few entries are ordered.
    """
    rows, slots = score.shape
    if rows == 1 and slots >= 8 * _SAMPLE:
        row = score[0]
        # An odd distance does not meet the same columns of every row of a weight.
        sample = row[:: (slots // _SAMPLE) | 1].sort(descending=True).values
        at = k * len(sample) // slots
        above = row > sample[max(at - _MARGIN, 0)]
        near = row[~above & (row >= sample[min(at + _MARGIN, len(sample) - 1)])]
        left = k - int(above.sum())
        if 0 < left <= len(near):
            return torch.topk(near, left, sorted=False).values.amin().view(1, 1)
    # topk breaks ties in any order, but its least value is always the k-th. (kthvalue needs
    # quadratic time on descending input; a stable sort needs several times the time.)
    return torch.topk(score, k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)


@register_sparsifier(NM)
def best_of_groups(score: Tensor, pattern: NM) -> Tensor:
    """Keep the best n of each m slots of a row."""
    return top(score.reshape(-1, pattern.m), pattern.n).reshape(score.shape)


@register_sparsifier(Unstructured)
@register_sparsifier(Block)
def best_of_all(score: Tensor, pattern: Unstructured | Block) -> Tensor:
    """Keep the best slots of the weight."""
    (high, wide), (rows, cols) = pattern.tile, score.shape
    kept = pattern.count(rows * high, cols * wide) // (high * wide)
    return top(score.reshape(1, -1), kept).reshape(score.shape)


register_sparsifier(GroupedNM, select_grouped)


@register_sparsifier(Nonzeros)
def not_zero(score: Tensor, pattern: Nonzeros) -> Tensor:
    """Keep the slots whose score is not zero."""
    return score != 0
    # --8<-- [end:selection]


def is_own(pattern: Pattern) -> bool:
    """Whether a pattern is one of the package, whose rules the kernels of masks know."""
    return isinstance(pattern, _OWN)


def select(score: Tensor, pattern: Pattern) -> Tensor:
    """Return the slots that a pattern keeps.

    Args:
        score: float [rows / tile rows, cols / tile columns], the scores of the slots.
        pattern: the pattern; what a selection of others returns is checked.

    Returns:
        bool, shape and device of `score`.

    Raises:
        PatternError: a selection of others fails, or returns no mask of its pattern.
    """
    selection = selection_of(pattern)
    if is_own(pattern):
        return selection(score, pattern)  # type: ignore[no-any-return]
    who = f"the selection of pattern {pattern} ({_name(selection)})"
    try:
        kept = selection(score.clone(), pattern)  # a copy: it may write into it
    except Exception as error:
        raise PatternError(f"{who} raised {type(error).__name__}: {error!s:.300}") from error
    if not isinstance(kept, Tensor) or kept.dtype != torch.bool:
        given = kept.dtype if isinstance(kept, Tensor) else type(kept).__name__
        raise PatternError(f"{who} returned {given}; it must return a bool tensor, True = kept")
    if kept.shape != score.shape or kept.device != score.device:
        raise PatternError(
            f"{who} returned a mask {list(kept.shape)} on {kept.device}; it must be "
            f"{list(score.shape)} on {score.device}, as the scores are"
        )
    (high, wide), (rows, cols) = pattern.tile, score.shape
    needed, keeps = pattern.count(rows * high, cols * wide), int(kept.sum()) * high * wide
    if keeps != needed:
        raise PatternError(
            f"{who} keeps {keeps} entries; {type(pattern).__name__}.count([{rows * high}, "
            f"{cols * wide}]) says {needed}: mend one of the two"
        )
    return kept


def obeys(slots: Tensor, pattern: Pattern, who: str) -> None:
    """Raise StructureError unless slots are a mask of a pattern of others.

    A selection that keeps the best slots keeps exactly those of a mask that is its score.

    Args:
        slots: bool, the kept slots.
        pattern: the pattern.
        who: the beginning of the message.
    """
    wrong = select(slots.float(), pattern) != slots
    if bool(wrong.any()):
        row, col = (int(i) for i in wrong.nonzero()[0])
        high, wide = pattern.tile
        kept = "keeps" if bool(slots[row, col]) else "drops"
        raise StructureError(
            f"{who} {kept} entry [{row * high}, {col * wide}], and pattern {pattern} does not: "
            "build the mask with mask_from_score"
        )


def spread(slots: Tensor, high: int, wide: int) -> Tensor:
    """Return the mask of the entries of kept slots."""
    rows, cols = slots.shape
    tiles = slots[:, None, :, None].expand(rows, high, cols, wide)
    return tiles.reshape(rows * high, cols * wide)


def _name(function: object) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', function)}"
