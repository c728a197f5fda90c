"""Masks of `GroupedNM`: N:M in which every choice of columns occurs equally often.

A group of m columns of one row has one of the C(m, n) choices, in colexicographic order. In a
chunk of r rows each choice occurs floor(r / C) or ceil(r / C) times.
"""

from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gossamer.errors import StructureError
from gossamer.patterns import GroupedNM

__all__ = ["check_balance", "check_choices", "choices", "draw_choices", "select_grouped"]


def choices(n: int, m: int) -> Tensor:
    """Return all choices of n of m columns, int64 [C(m, n), n], each ascending.

    Example:
        >>> choices(2, 3).tolist()
        [[0, 1], [0, 2], [1, 2]]
    """
    return torch.tensor(sorted(combinations(range(m), n), key=lambda c: c[::-1]))


def select_grouped(score: Tensor, pattern: GroupedNM) -> Tensor:
    """Choose greedily by the kept score: the best pair (row, choice) of a chunk comes first.

    Pairs of a chunk are visited in descending order of the score that they keep. A pair is skipped
    if its row has a choice already, or if its choice occurs often enough. Of equal pairs the one
    with the lower row, then with the lower choice comes first.

    Args:
        score: float32 or float64 [rows, cols]; larger is better, NaN is best.
        pattern: the pattern of the mask.

    Returns:
        bool [rows, cols], on the device of the score.

    Reference:
        Ivanov et al. 2023, "STen: Productive and Efficient Sparsity in PyTorch": the conversion
        that runs on the CPU.

    Example:
        >>> select_grouped(torch.tensor([[3.0, 1.0], [2.0, 0.0]]), GroupedNM(1, 2, 1))
        tensor([[ True, False],
                [False,  True]])
    """
    rows, cols = score.shape
    groups, whole = cols // pattern.m, rows - rows % pattern.chunk
    table = choices(pattern.n, pattern.m)
    # Finite, because sums of infinities of both signs would be NaN; NaN ranks above infinity.
    finite = score.detach().cpu().double().clamp(-1e300, 1e300).nan_to_num(nan=1e305)
    finite = finite.view(rows, groups, pattern.m)
    kept = torch.zeros(rows, groups, len(table), dtype=torch.float64)
    for column in table.unbind(1):
        kept += finite[:, :, column]
    taken = torch.empty(rows, groups, dtype=torch.int64)
    for start, stop, size in ((0, whole, pattern.chunk), (whole, rows, rows - whole)):
        if stop > start and groups:
            # [chunks, rows of a chunk, groups, choices] -> one line per (chunk, group).
            part = kept[start:stop].view(-1, size, groups, len(table)).transpose(1, 2)
            chosen = _greedy(part.reshape(-1, size * len(table)), size, len(table))
            lines = torch.from_numpy(chosen).view(-1, groups, size).transpose(1, 2)
            taken[start:stop] = lines.reshape(-1, groups)
    return _mask(taken, pattern).to(score.device)


def draw_choices(rows: int, cols: int, pattern: GroupedNM, generator: torch.Generator) -> Tensor:
    """Draw a mask uniformly from all masks of the pattern.

    Returns:
        The kept columns inside each group, int64 [rows, groups, n], ascending.
    """
    groups, count = cols // pattern.m, comb(pattern.m, pattern.n)
    taken = torch.empty(rows, groups, dtype=torch.int64)
    for start in range(0, rows, pattern.chunk):
        size = min(pattern.chunk, rows - start)
        each, extra = divmod(size, count)
        more = torch.rand(groups, count, generator=generator, dtype=torch.float64).argsort(1)
        dealt = torch.cat([torch.arange(count).repeat(groups, each), more[:, :extra]], dim=1)
        order = torch.rand(groups, size, generator=generator, dtype=torch.float64).argsort(1)
        taken[start : start + size] = dealt.gather(1, order).t()
    return choices(pattern.n, pattern.m)[taken]


def check_balance(mask: Tensor, pattern: GroupedNM) -> None:
    """Raise StructureError unless the choices occur equally often in each chunk of an N:M mask."""
    shape = mask.shape[0], mask.shape[1] // pattern.m, pattern.n
    kept = mask.reshape(-1, pattern.m).nonzero()[:, 1].view(shape)
    check_choices(kept, pattern, "check_mask got a mask that")


def check_choices(kept: Tensor, pattern: GroupedNM, who: str) -> None:
    """Raise StructureError unless choices occur equally often in each chunk.

    Args:
        kept: int64 [rows, groups, n], the kept columns inside each group, ascending.
        pattern: the pattern.
        who: begin of the error.
    """
    (rows, groups, _), count = kept.shape, comb(pattern.m, pattern.n)
    number = torch.zeros(rows, groups, dtype=torch.int64, device=kept.device)
    for i in range(pattern.n):
        # The rank of a choice c_0 < c_1 < …: sum of C(c_i, i + 1).
        binomials = torch.tensor([comb(c, i + 1) for c in range(pattern.m)], device=kept.device)
        number += binomials[kept[:, :, i]]
    for start in range(0, rows, pattern.chunk):
        part = number[start : start + pattern.chunk]
        most = -(-len(part) // count)
        used = torch.zeros(groups, count, dtype=torch.int64, device=kept.device)
        used.scatter_add_(1, part.t(), torch.ones_like(part.t()))
        wrong = (used > most) | (used < len(part) // count)
        if bool(wrong.any()):
            group, choice = wrong.nonzero()[0].tolist()
            columns = choices(pattern.n, pattern.m)[choice].tolist()
            raise StructureError(
                f"{who} takes columns {columns} "
                f"{int(used[group, choice])} times in rows {start} to {start + len(part) - 1} of "
                f"the {pattern.m} columns from {group * pattern.m}; pattern {pattern} takes each "
                f"choice {len(part) // count} to {most} times there: build the mask with "
                "mask_from_score"
            )


def _greedy(score: Tensor, rows: int, count: int) -> npt.NDArray[np.int64]:
    """The choice of each row, [lines, rows], of the scores [lines, rows * count]."""
    order = score.argsort(dim=1, descending=True, stable=True).t().contiguous().numpy()
    lines = np.arange(order.shape[1])
    each, extra = divmod(rows, count)
    chosen = np.full((order.shape[1], rows), -1, dtype=np.int64)
    used = np.zeros((order.shape[1], count), dtype=np.int64)
    left = np.full(order.shape[1], extra)  # choices that may still be taken once more than each
    for pair in order:
        row, choice = pair // count, pair % count
        times = used[lines, choice]
        free = (chosen[lines, row] < 0) & ((times < each) | ((times == each) & (left > 0)))
        at = lines[free]
        chosen[at, row[free]] = choice[free]
        used[at, choice[free]] += 1
        left[at] -= times[free] == each
    return chosen


def _mask(taken: Tensor, pattern: GroupedNM) -> Tensor:
    rows, groups = taken.shape
    mask = torch.zeros(rows, groups, pattern.m, dtype=torch.bool)
    mask.scatter_(2, choices(pattern.n, pattern.m)[taken], True)
    return mask.view(rows, groups * pattern.m)
