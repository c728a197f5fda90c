"""Penalties written down once more, plainly, and slow ways to find their proximal points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

GRID = 20_001


def l1(a: Vector, lam: float) -> Vector:
    return lam * a


def elastic_net(a: Vector, lam: float, rho: float) -> Vector:
    return lam * (rho * a + (1 - rho) * a * a / 2)


def l0(a: Vector, lam: float) -> Vector:
    return lam * (a > 0)


def lp(a: Vector, lam: float, p: float) -> Vector:
    return lam * a**p


def mcp(a: Vector, lam: float, gamma: float) -> Vector:
    return np.where(a <= gamma * lam, lam * a - a * a / (2 * gamma), gamma * lam**2 / 2)


def scad(a: Vector, lam: float, gamma: float) -> Vector:
    middle = (2 * gamma * lam * a - a * a - lam**2) / (2 * (gamma - 1))
    return np.select([a <= lam, a <= gamma * lam], [lam * a, middle], lam**2 * (gamma + 1) / 2)


# --8<-- [start:oracle]
def capped_l1(a: Vector, lam: float, t: float) -> Vector:
    return lam * np.minimum(a, t)
    # --8<-- [end:oracle]


def transformed_l1(x: Vector, lam: float, a: float) -> Vector:
    return lam * (a + 1) * x / (a + x)


def log_sum(a: Vector, lam: float, eps: float) -> Vector:
    return lam * np.log1p(a / eps)


def huber(a: Vector, lam: float, delta: float) -> Vector:
    return lam * np.where(a <= delta, a * a / 2, delta * (a - delta / 2))


class Row(NamedTuple):
    """What the tests need to know of a separable penalty.

    Attributes:
        phi: the penalty of magnitudes, with its parameters in order.
        spans: beside lam, what each parameter is drawn from: (low, high), or (low, high, "log") for
            powers of ten.
        cases: parameters that the compiled operator is tested with.
        example: parameters beside lam of one penalty of the class.
        concave: whether phi is concave.
    """

    phi: Callable[..., Vector]
    spans: dict[str, tuple[float, float] | tuple[float, float, str]]
    cases: list[tuple[float, ...]]
    example: dict[str, float]
    concave: bool = True


# A new separable penalty adds its formula above and its row here: every test finds it.
ROWS: dict[str, Row] = {
    "l1": Row(l1, {}, [(0.3,)], {}, concave=False),
    "elastic_net": Row(elastic_net, {"rho": (0, 1)}, [(0.3, 0.6)], {"rho": 0.4}, concave=False),
    "l0": Row(l0, {}, [(0.3,)], {}),
    "lp": Row(
        lp, {"p": (0.02, 0.99)}, [(0.3, 0.4), (0.3, 0.5), (0.3, 2 / 3), (0.3, 0.97)], {"p": 0.5}
    ),
    "mcp": Row(mcp, {"gamma": (-1, 1.5, "log")}, [(0.3, 3.0), (0.3, 0.4)], {"gamma": 2.5}),
    "scad": Row(scad, {"gamma": (0.31, 1.5, "log")}, [(0.3, 3.7), (0.3, 2.1)], {"gamma": 3.5}),
    # --8<-- [start:row]
    "capped_l1": Row(capped_l1, {"t": (-2, 1, "log")}, [(0.3, 0.8), (0.3, 0.1)], {"t": 0.8}),
    # --8<-- [end:row]
    "transformed_l1": Row(
        transformed_l1, {"a": (-2, 2, "log")}, [(0.3, 1.0), (0.3, 0.2)], {"a": 1.0}
    ),
    "log_sum": Row(log_sum, {"eps": (-2, 2, "log")}, [(0.3, 1.0), (0.3, 0.1)], {"eps": 0.8}),
    "huber": Row(
        huber, {"delta": (-2, 1, "log")}, [(0.3, 1.0), (0.3, 0.1)], {"delta": 0.5}, concave=False
    ),
}
PHI: dict[str, Callable[..., Vector]] = {name: row.phi for name, row in ROWS.items()}


def objective(kind: str, parameters: dict[str, float], step: float, x: Any, z: Any) -> Vector:
    """1/2 (z - x)^2 + step phi(|z|), entry by entry."""
    return 0.5 * (z - x) ** 2 + step * PHI[kind](np.abs(z), **parameters)


def grid_best(kind: str, parameters: dict[str, float], step: float, x: Vector) -> Vector:
    """The least objective on a grid of 20,001 points from -|x| to |x|, with 0, for each x."""
    unit = np.linspace(-1.0, 1.0, GRID)
    unit[GRID // 2] = 0.0
    z = np.abs(x)[:, None] * unit
    return objective(kind, parameters, step, x[:, None], z).min(axis=1)


def envelope(sizes: Vector, k: int) -> Vector:
    """GS_k of norms [..., m] for unit weights: half the squared k-support norm, by sorting.

    Argyriou, Foygel and Srebro 2012, proposition 2.1: with r the number of entries that share,
    1/2 (sum of the first k - r - 1 squares + (sum of the rest)^2 / (r + 1)).
    """
    s = -np.sort(-sizes, axis=-1)
    if k >= s.shape[-1]:
        return 0.5 * (s**2).sum(-1)
    best = np.full(s.shape[:-1], np.nan)
    for r in range(k):
        top, rest = s[..., : k - r - 1], s[..., k - r - 1 :].sum(-1)
        level = rest / (r + 1)
        above = np.inf if k - r - 1 == 0 else s[..., k - r - 2]
        fits = (above * (1 + 1e-12) >= level) & (level >= s[..., k - r - 1] * (1 - 1e-12))
        best = np.where(
            np.isnan(best) & fits, 0.5 * ((top**2).sum(-1) + rest * rest / (r + 1)), best
        )
    return best


def not_worse(
    total: Callable[[Vector], Vector],
    z: Vector,
    rng: np.random.Generator,
    also: Vector | None = None,
    tries: int = 60,
) -> None:
    """Assert that no perturbation of z, at scales from 1 to 1e-6, has a lower objective.

    `total` takes [tries, n] and gives [tries]. Perturbations are dense, of single entries, towards
    zero, and to the points `also`.
    """
    n = z.size
    size = 10.0 ** rng.uniform(-6, 0, (tries, 1)) * (np.abs(z).max() + 0.1)
    moves = rng.normal(size=(tries, n)) * size
    moves[: tries // 2] *= rng.random((tries // 2, n)) < 1.5 / n
    others = [z + moves, z * rng.uniform(0, 1.2, (tries, 1)), z * (rng.random((tries, n)) < 0.7)]
    if also is not None:
        others.append(np.atleast_2d(also))
    everyone = np.concatenate(others)
    mine = total(z[None])[0]
    best = total(everyone).min()
    assert mine <= best + 1e-12 * (1 + abs(mine)), f"{mine} is beaten by {best}"
