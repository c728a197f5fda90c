"""Plain NumPy formulas of the operators on groups, by sorting and by scipy: slow and short."""

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]


def sorted_root(slope: Vector, offset: Vector, cost: Vector, k: float) -> float:
    """eta with sum cost * clip(slope * eta - offset, 0, 1) = k: all breakpoints, sorted.

    Each segment's slope and intercept are summed afresh, so nothing cancels.
    """
    enters, fills = offset / slope, (1 + offset) / slope
    points = np.unique(np.concatenate([enters, fills]))
    low, high = -1, len(points) - 1  # g(points[high]) >= k

    def at(eta: float) -> float:
        u = np.where(eta <= enters, 0.0, np.where(eta >= fills, 1.0, slope * eta - offset))
        return float((cost * u).sum())

    while high - low > 1:
        middle = (low + high) // 2
        if at(points[middle]) >= k:
            high = middle
        else:
            low = middle
    left, right = points[low] if low >= 0 else 0.0, points[high]
    ramp = (enters <= left) & (fills >= right)
    full = fills <= left
    total = (cost * slope)[ramp].sum()
    if total == 0:
        return float(right)
    eta = (k - cost[full].sum() + (cost * offset)[ramp].sum()) / total
    return float(np.clip(eta, left, right))


def wgsef_gains(
    a: Vector,
    k: float,
    lam: float,
    d: Vector | None = None,
    c: Vector | None = None,
    h: Vector | None = None,
) -> Vector:
    m = len(a)
    d, c, h = (np.ones(m) if w is None else w for w in (d, c, h))
    if lam == 0:
        return np.ones(m)
    live = a > 0
    gains = np.zeros(m)
    if k <= 0 or not live.any():
        return gains
    offset = lam * d / h
    if c[live].sum() <= k:
        gains[live] = 1 / (1 + offset[live])
        return gains
    slope = a[live] * np.sqrt(d[live] / c[live])
    e = offset[live]
    eta = sorted_root(slope, e, c[live], k)
    u = np.where(eta <= e / slope, 0.0, np.where(eta >= (1 + e) / slope, 1.0, slope * eta - e))
    gains[live] = np.where(u > 0, u / (u + e), 0.0)
    return gains


def wgsef_value(a: Vector, k: float, d: Vector | None = None, c: Vector | None = None) -> float:
    m = len(a)
    d, c = (np.ones(m) if w is None else w for w in (d, c))
    live = a > 0
    if not live.any():
        return 0.0
    a, d, c = a[live], d[live], c[live]
    if c.sum() <= k:
        return 0.5 * float((d * a**2).sum())
    slope = a * np.sqrt(d / c)
    u = np.minimum(1.0, slope * sorted_root(slope, np.zeros(len(a)), c, k))
    return 0.5 * float((d * a**2 / u).sum())


def fast_sorted_gains(a: Vector, k: float, lam: float) -> Vector:
    """What one would write with NumPy: sort 2 m breakpoints, cumulative sums. For timing."""
    enters, fills = lam / a, (1 + lam) / a
    points = np.concatenate([enters, fills])
    slopes = np.concatenate([a, -a])
    fixed = np.concatenate([np.full(len(a), -lam), np.full(len(a), 1 + lam)])
    order = np.argsort(points)
    points, slopes, fixed = points[order], slopes[order].cumsum(), fixed[order].cumsum()
    at = int(np.searchsorted(slopes * points + fixed, k))
    eta = (k - fixed[at - 1]) / slopes[at - 1]
    u = np.where(eta <= enters, 0.0, np.clip(a * eta - lam, 0.0, 1.0))
    return u / (u + lam)


def top_k(x: Vector, k: int) -> Vector:
    order = np.argsort(-np.abs(x), kind="stable")
    out = np.zeros_like(x)
    out[order[:k]] = x[order[:k]]
    return out


def simplex(x: Vector, radius: float) -> Vector:
    x = x - x.max()  # else the radius drowns in large numbers
    y = np.sort(x)[::-1]
    roots = (np.cumsum(y) - radius) / np.arange(1, len(y) + 1)
    return np.maximum(0.0, x - roots[np.flatnonzero(y > roots)[-1]])


def l1_ball(x: Vector, radius: float) -> Vector:
    if np.abs(x).sum() <= radius:
        return x.copy()
    if radius == 0:
        return np.zeros_like(x)
    return np.sign(x) * simplex(np.abs(x), radius)


def l1_minus_l2(x: Vector, lam: float, alpha: float) -> Vector:
    top = np.abs(x).max()
    if top > lam:
        z = np.sign(x) * np.maximum(np.abs(x) - lam, 0)
        size = np.linalg.norm(z)
        return z * (size + alpha * lam) / size
    out = np.zeros_like(x)
    at = int(np.argmax(np.abs(x)))
    out[at] = np.sign(x[at]) * max(0.0, top + (alpha - 1) * lam)
    return out


def metric_group_l2(x: Vector, h: Vector, lam: float) -> Vector:
    """One group; the root by bisection."""
    if np.linalg.norm(h * x) <= lam:
        return np.zeros_like(x)
    low, high = 0.0, float(np.linalg.norm(x))
    for _ in range(200):
        rho = 0.5 * (low + high)
        if ((h * x / (h * rho + lam)) ** 2).sum() > 1:
            low = rho
        else:
            high = rho
    return h * high * x / (h * high + lam)
