r"""The least lp path norm of a network of one input that passes through given points, exactly.

Such a network is a continuous piecewise-linear function, and its path norm is the sum over knots
of |change of slope|^p. Two facts make the minimum over all of them finite work.

1. For 0 < p < 1 every minimiser is one of the minimisers for p = 1 (Nakhleh & Nowak 2025).
   Those are known (Debarre, Denoyelle, Unser & Fageot 2022): they join the points by straight
   lines, except along a maximal run of inner points whose discrete curvatures c_j (slope after
   minus slope before) have one strict sign, where they may be any convex (or concave) function
   through the points between the slope before the run and the slope after it.
2. In one run, with slopes s_0 .. s_m around its points 1 .. m, one knot between neighbours is the
   cheapest (|.|^p is subadditive). So a function is given by the slopes b_j on the left and a_j on
   the right of each point, the cost is the concave sum of |a_j - b_j|^p and |b_(j+1) - a_j|^p, and
   what is possible is a product of triangles s_(j-1) <= b_j <= a_j <= s_j (the first b and the last
   a are fixed). A concave function has its minimum at a vertex: each slope is that of a chord. The
   vertices are the ways to merge disjoint neighbouring knots j, j + 1 into one of change
   c_j + c_(j+1) between the two points, so the minimum is a recursion over the run:

       best[j] = min(best[j - 1] + |c_j|^p,  best[j - 2] + |c_(j-1) + c_j|^p).

p = 0 counts knots: the sparsest interpolant.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from gossamer import DataError

__all__ = ["Interpolant", "minimal_path_norm"]

# Slopes that agree to this, relative to the largest, are one slope: the points lie on a line.
ROUNDING = 1e-12


class Interpolant(NamedTuple):
    """A piecewise-linear function through the points, and its path norm.

    Attributes:
        value: sum of ``|change|^p``.
        knots: ascending, where the slope changes.
        changes: of the slope, one a knot.
        slope: before the first knot.
        point: (x, y), one place that the function passes through before the first knot.
    """

    value: float
    knots: tuple[float, ...]
    changes: tuple[float, ...]
    slope: float
    point: tuple[float, float]

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate at x, of any shape."""
        at = x.double()
        y = self.point[1] + self.slope * (at - self.point[0])
        for knot, change in zip(self.knots, self.changes, strict=True):
            y = y + change * (at - knot).relu()
        return y


def minimal_path_norm(x: Sequence[float], y: Sequence[float], p: float) -> Interpolant:
    """Find an interpolant of least path norm, for 0 <= p <= 1, in linear time.

    Args:
        x: at least two different places, in any order.
        y: one value each.
        p: in [0, 1]; at 1 every way of merging has the same value, and the fewest knots are taken.

    Returns:
        A function of least ``sum |change of slope|^p``.

    Raises:
        DataError: fewer than two points, two at one place, sizes that differ, values that are not
            finite, or p out of range.

    Reference: Nakhleh & Nowak 2025 (arXiv 2505.21791); Debarre, Denoyelle, Unser & Fageot 2022.

    >>> best = minimal_path_norm(range(-2, 4), (0, 0, 1, 1, 0, 0), p=0.4)
    >>> best.knots, best.changes, round(best.value, 4)
    ((-1.0, 0.5, 2.0), (1.0, -2.0, 1.0), 3.3195)
    """
    points = _points(x, y, p)
    slopes = [(y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in pairwise(points)]
    rounding = ROUNDING * max(abs(s) for s in slopes)
    curvatures = [after - before for before, after in pairwise(slopes)]
    knots, changes = [], []
    for first, last in _runs([0.0 if abs(c) <= rounding else c for c in curvatures]):
        for j, merged in _merges(curvatures[first:last], p):
            at = first + j  # inner point `at` is points[at + 1]; slopes[at] comes before it
            if merged:
                (x0, y0), (x1, y1) = points[at + 1], points[at + 2]
                before, after = slopes[at], slopes[at + 2]
                knots.append((y1 - y0 + before * x0 - after * x1) / (before - after))
                changes.append(after - before)
            else:
                knots.append(points[at + 1][0])
                changes.append(curvatures[at])
    value = sum(abs(change) ** p for change in changes)
    return Interpolant(float(value), tuple(knots), tuple(changes), slopes[0], points[0])


def _points(x: Sequence[float], y: Sequence[float], p: float) -> list[tuple[float, float]]:
    if not 0 <= p <= 1:
        raise DataError(f"p is {p}; a number in [0, 1] is needed")
    if len(x) != len(y) or len(x) < 2:
        raise DataError(f"{len(x)} x and {len(y)} y; at least two points are needed")
    points = sorted((float(a), float(b)) for a, b in zip(x, y, strict=True))
    if not all(torch.tensor(points, dtype=torch.float64).isfinite().flatten()):
        raise DataError("a point is not finite; remove it")
    for (x0, _), (x1, _) in pairwise(points):
        if x0 == x1:
            raise DataError(f"two points at x = {x0}; keep one, no function passes through both")
    return points


def _runs(curvatures: list[float]) -> list[tuple[int, int]]:
    """Maximal runs [first, last) of one strict sign."""
    runs, first = [], 0
    for j, c in enumerate(curvatures):
        if j > first and not c * curvatures[first] > 0:
            runs.append((first, j))
            first = j
        if c == 0:
            first = j + 1
    if first < len(curvatures):
        runs.append((first, len(curvatures)))
    return runs


def _merges(changes: list[float], p: float) -> list[tuple[int, bool]]:
    """The cheapest cover of a run: (j, whether the knots j and j + 1 are one)."""
    # Equal costs (p = 1) go to fewer knots, so the count is the second key.
    best: list[tuple[float, int]] = [(0.0, 0)]
    choice: list[bool] = []
    for j, change in enumerate(changes):
        alone = (best[j][0] + abs(change) ** p, best[j][1] + 1)
        if j == 0:
            best.append(alone)
            choice.append(False)
            continue
        pair = (best[j - 1][0] + abs(changes[j - 1] + change) ** p, best[j - 1][1] + 1)
        tied = abs(pair[0] - alone[0]) <= ROUNDING * alone[0]
        choice.append(pair[1] <= alone[1] if tied else pair[0] < alone[0])
        best.append(pair if choice[-1] else alone)
    cover, j = [], len(changes) - 1
    while j >= 0:
        cover.append((j - 1, True) if choice[j] else (j, False))
        j -= 2 if choice[j] else 1
    return cover[::-1]
