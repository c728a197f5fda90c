"""Transport problems that the bench solves, and how many of them are measured."""

from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.harness.plan import Plan, quick
from gossamer import DataError

Array = NDArray[np.float64]

ASSIGNMENT, POINTS = "assignment", "points"
DIGITS_L1, DIGITS_L2 = "digits L1", "digits L2²"
TOLERANCE = 1e-9
# Sums of a million float64 numbers differ by this in another order.
ROUNDING = 1e-12
# Share of a digit's mass that is spread over all pixels: a method must not need empty ones.
BACKGROUND = 0.01
NO_DIGITS = "the digits come with scikit-learn, which is not installed: pip install scikit-learn"


class Case(NamedTuple):
    """One kind of problem.

    Args:
        family: how the cost comes about.
        n: rows, and columns.
        reg: of the entropy; the largest cost is 1.

    Example:
        >>> Case("points", 500, 2e-4).pattern, Case("points", 500, 2e-4).shape
        ('points, reg 0.0002', '500x500')
    """

    family: str
    n: int
    reg: float

    @property
    def shape(self) -> str:
        """Text of the sizes, as a record has it."""
        return f"{self.n}x{self.n}"

    @property
    def pattern(self) -> str:
        """Text of family and reg, as a record has it."""
        return f"{self.family}, reg {self.reg:.4g}"


class Transport(NamedTuple):
    """A problem with its numbers.

    Args:
        cost: [n, n], from 0 to 1.
        a: weights of the rows, [n].
        b: weights of the columns, [n].
        reg: of the entropy.
    """

    cost: Array
    a: Array
    b: Array
    reg: float


PUBLISHED_CASE = Case(ASSIGNMENT, 500, 1 / 1200)
TRACED = (PUBLISHED_CASE, Case(POINTS, 500, 1e-3))
LARGE_CASE = Case(POINTS, 10_000, 1e-3)


@dataclass(frozen=True)
class Scope:
    """How much of the transport part is measured.

    Args:
        families: of costs.
        sizes: n.
        regs: of the entropy.
        seeds: problems per case.
        cap: seconds after which a rival's call is stopped, for each size.
        seconds: for repeating what is fast, per case.
        published: the case of the method's paper.
        traces: cases for which the error is followed.
        tolerances: of a trace.
        large: points of the lazy case.
    """

    families: tuple[str, ...] = (ASSIGNMENT, POINTS, DIGITS_L1, DIGITS_L2)
    sizes: tuple[int, ...] = (500, 1000, 2000)
    regs: tuple[float, ...] = (1e-2, 1e-3, 2e-4)
    seeds: tuple[int, ...] = (0, 1, 2)
    cap: tuple[float, ...] = (0.8, 1.6, 3.0)
    seconds: float = 1.0
    published: Case = PUBLISHED_CASE
    traces: tuple[Case, ...] = TRACED
    tolerances: tuple[float, ...] = tuple(10.0**-k for k in range(1, 11))
    large: Case = LARGE_CASE

    @property
    def cases(self) -> list[Case]:
        """All cases, by family and reg, the smallest first."""
        families = [f for f in self.families if f not in (DIGITS_L1, DIGITS_L2) or has_digits()]
        return [Case(f, n, reg) for f in families for reg in self.regs for n in self.sizes]

    def cap_for(self, case: Case) -> float:
        """Seconds that a rival's call may take in a case."""
        return dict(zip(self.sizes, self.cap, strict=True)).get(case.n, max(self.cap))


FULL = Plan(Scope())
# Everything once, as little as shows that it works.
QUICK = quick(
    Scope(
        sizes=(60,),
        regs=(1e-2,),
        cap=(0.2,),
        seconds=0.0,
        published=Case(ASSIGNMENT, 60, 1 / 1200),
        traces=(Case(POINTS, 60, 1e-2),),
        tolerances=(1e-2, 1e-6),
        large=Case(POINTS, 200, 1e-2),
    )
)


def has_digits() -> bool:
    """Whether scikit-learn, which brings the digits, is installed."""
    return find_spec("sklearn") is not None


@lru_cache(maxsize=6)
def build(case: Case, seed: int) -> Transport:
    """Draw the numbers of a case; the same case and seed give the same numbers.

    Args:
        case: what to build.
        seed: which of its problems.

    Returns:
        The problem.

    Example:
        >>> problem = build(Case("points", 6, 1e-2), seed=0)
        >>> problem.cost.shape, float(problem.cost.max()), round(float(problem.a.sum()), 12)
        ((6, 6), 1.0, 1.0)
    """
    if case.family in (DIGITS_L1, DIGITS_L2):
        return _digits(case, seed)
    rng = np.random.default_rng(seed)
    uniform = np.full(case.n, 1 / case.n)
    if case.family == ASSIGNMENT:
        cost = rng.random((case.n, case.n))
    else:
        cost = square_distances(*points(case, seed))
        cost /= cost.max()
    return Transport(cost, uniform, uniform, case.reg)


def points(case: Case, seed: int) -> tuple[Array, Array]:
    """Two clouds in the unit square, [n, 2] each."""
    rng = np.random.default_rng(seed)
    return rng.random((case.n, 2)), rng.random((case.n, 2))


def square_distances(x: Array, y: Array) -> Array:
    """|x_i - y_j|^2, [n, m]."""
    return np.asarray(((x[:, None] - y) ** 2).sum(2))


def digit_images() -> tuple[Array, NDArray[np.int64]]:
    """The 1797 digits of scikit-learn.

    Returns:
        Images [1797, 8, 8] from 0 to 16, and which digit each is.

    Raises:
        DataError: scikit-learn is not installed.
    """
    if not has_digits():
        raise DataError(NO_DIGITS)
    data: Any = import_module("sklearn.datasets").load_digits()
    return np.asarray(data.images, np.float64), np.asarray(data.target, np.int64)


def _digits(case: Case, seed: int) -> Transport:
    """Two images of different digits, their pixels' intensities moved over the grid.

    That is the experiment of Tang et al. (ICLR 2024) on MNIST; 8 x 8 digits are enlarged to n
    pixels by linear interpolation.
    """
    images, labels = digit_images()
    rng = np.random.default_rng(seed)
    first = rng.integers(len(images))
    second = rng.choice(np.flatnonzero(labels != labels[first]))
    at = grid(case.n)
    height = len(np.unique(at[:, 0]))
    a, b = (enlarge(images[i], height, case.n // height).ravel() for i in (first, second))
    a, b = (w / w.sum() * (1 - BACKGROUND) + BACKGROUND / case.n for w in (a, b))
    if case.family == DIGITS_L1:
        cost = np.asarray(np.abs(at[:, None] - at).sum(2))
    else:
        cost = square_distances(at, at)
    return Transport(cost / cost.max(), a / a.sum(), b / b.sum(), case.reg)


def grid(n: int) -> Array:
    """The n pixels' centres in the unit square, row by row; as nearly as many columns as rows.

    Args:
        n: number of pixels.

    Returns:
        [n, 2].

    Example:
        >>> grid(6).tolist()[:3]
        [[0.0, 0.0], [0.0, 0.5], [0.0, 1.0]]
    """
    height = next(h for h in range(int(n**0.5), 0, -1) if n % h == 0)
    sides = (np.linspace(0, 1, height), np.linspace(0, 1, n // height))
    rows, columns = np.meshgrid(*sides, indexing="ij")
    return np.stack([rows.ravel(), columns.ravel()], 1)


def enlarge(image: Array, height: int, width: int) -> Array:
    """Linear interpolation of an image.

    Example:
        >>> enlarge(np.array([[0.0, 1.0]]), 1, 3).tolist()
        [[0.0, 0.5, 1.0]]
    """
    rows = _interpolation(image.shape[0], height)
    columns = _interpolation(image.shape[1], width)
    return np.asarray(rows @ image @ columns.T)


def _interpolation(old: int, new: int) -> Array:
    """[new, old]: weights of the old samples in the new ones."""
    at = np.linspace(0, old - 1, new)
    return np.asarray(np.maximum(0.0, 1 - np.abs(at[:, None] - np.arange(old))))
