"""What Gossamer's proximal operators are measured against: formulas in NumPy and eager torch.

Each computes argmin_z 1/2 |z - x|^2 + penalty(z) on a whole array, as well as the library allows.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.prox.cases import Operator

Array = NDArray[np.float64]

# Newton steps after which the scale-free lp equation is solved to rounding.
NEWTON_STEPS = {torch.float32: 4, torch.float64: 7}


def wgsef_gains(
    norms: Array, k: float, lam: float, d: Array | None = None, c: Array | None = None
) -> Array:
    """Gains of WGSEF by sorting all breakpoints: any weights, any costs.

    Args:
        norms: of the groups, [m].
        k: budget.
        lam: strength, positive.
        d: weights, [m]; 1 by default.
        c: costs, [m]; 1 by default.

    Returns:
        [m], from 0 to 1.

    Example:
        >>> (wgsef_gains(np.array([0.0, 5, 10, 15, 20]), 1, 3.0) * [0, 5, 10, 15, 20]).round(9)
        array([0., 0., 0., 0., 5.])
    """
    gains = np.zeros(len(norms))
    active = np.flatnonzero(norms)
    d = np.ones(len(active)) if d is None else d[active]
    c = np.ones(len(active)) if c is None else c[active]
    offset = lam * d
    if c.sum() <= k:
        gains[active] = 1 / (1 + offset)
        return gains
    sigma = norms[active] * np.sqrt(offset / c)
    leaves_zero, is_full = offset / sigma, (1 + offset) / sigma
    at = np.concatenate([leaves_zero, is_full])
    order = np.argsort(at)
    slope = np.concatenate([c * sigma, -c * sigma])[order].cumsum()
    intercept = np.concatenate([-c * offset, c * (1 + offset)])[order].cumsum()
    spent = slope * at[order] + intercept
    piece = max(int(np.searchsorted(spent, k, side="right")) - 1, 0)
    eta = (k - intercept[piece]) / slope[piece] if slope[piece] > 0 else at[order[piece]]
    share = np.clip(sigma * eta - offset, 0, 1)
    share[leaves_zero >= eta] = 0
    gains[active] = share / (share + offset)
    return gains


def wgsef_gains_equal(norms: Array, k: float, lam: float) -> Array:
    """The same where all weights and costs are 1: sort the norms alone, then bisect.

    Both breakpoints of a group fall with its norm, so sums over a range of the sorted norms give
    the budget that any eta spends in O(log m).

    Args:
        norms: of the groups, [m].
        k: budget.
        lam: strength, positive.

    Returns:
        [m], from 0 to 1.

    Example:
        >>> norms = np.random.default_rng(0).random(99)
        >>> np.allclose(wgsef_gains_equal(norms, 20, 0.3), wgsef_gains(norms, 20, 0.3))
        True
    """
    if np.count_nonzero(norms) <= k:
        return np.where(norms > 0, 1 / (1 + lam), 0.0)
    ordered = np.sort(norms)
    total = np.concatenate([[0.0], ordered.cumsum()])
    root = math.sqrt(lam)

    def count(eta: float) -> tuple[int, int]:
        zero = int(np.searchsorted(ordered, root / eta, side="right"))
        return zero, max(zero, int(np.searchsorted(ordered, (1 + lam) / (root * eta))))

    def spent(eta: float) -> float:
        zero, full = count(eta)
        between = root * eta * (total[full] - total[zero]) - lam * (full - zero)
        return float(len(ordered) - full + between)

    low = root / float(ordered[-1])
    high = (1 + lam) / (root * float(ordered[np.searchsorted(ordered, 0, side="right")]))
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if spent(middle) >= k else (middle, high)
    zero, full = count(high)
    left = k - (len(ordered) - full) + lam * (full - zero)
    eta = left / (root * float(total[full] - total[zero])) if full > zero else high
    share = np.clip(root * eta * norms - lam, 0, 1)
    return np.asarray(share / (share + lam))


def wgsef_in_place(x: NDArray[Any], gains: Callable[[Array], Array]) -> NDArray[Any]:
    """Norms of the rows, their gains, and the rows times those.

    Args:
        x: [m, n], written to.
        gains: of norms.

    Returns:
        x.
    """
    norms = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
    x *= gains(norms).astype(x.dtype)[:, None]
    return x


def soft(x: Tensor, threshold: float) -> Tensor:
    """sign(x) (|x| - threshold)_+, as torch has it."""
    return torch.nn.functional.softshrink(x, threshold)


def lp(x: Tensor, p: float, lam: float) -> Tensor:
    """The scale-free Newton formula of lam |x|^p.

    Args:
        x: any shape.
        p: exponent, in (0, 1).
        lam: strength, positive.

    Returns:
        A new tensor.

    Example:
        >>> lp(torch.tensor([0.5, 2.0]), 0.5, 0.3).tolist()
        [0.0, 1.8909...]
    """
    smallest = (2 * lam * (1 - p)) ** (1 / (2 - p))
    kappa = p / (2 * (1 - p))
    r = x.abs() / smallest
    t = r.clamp(min=1)
    for _ in range(NEWTON_STEPS[x.dtype]):
        q = t.pow(p - 1)
        slope = (q / t).mul_(-p / 2).add_(1)
        t = torch.sub(t, q.mul_(kappa).add_(t).sub_(r).div_(slope)).clamp_(min=1)
    return torch.where(r > 1 + kappa, t.mul_(smallest).copysign_(x), 0.0)


def elastic_net(x: Tensor, lam: float, rho: float) -> Tensor:
    """Of lam (rho |x| + (1 - rho) x^2 / 2)."""
    return soft(x, lam * rho).div_(1 + lam * (1 - rho))


def mcp(x: Tensor, lam: float, gamma: float) -> Tensor:
    """Of the minimax concave penalty, gamma > 1."""
    return torch.where(x.abs() <= gamma * lam, soft(x, lam).div_(1 - 1 / gamma), x)


def scad(x: Tensor, lam: float, gamma: float) -> Tensor:
    """Of the smoothly clipped absolute deviation, gamma > 2."""
    size = x.abs()
    middle = ((gamma - 1) * size).sub_(gamma * lam).div_(gamma - 2).copysign_(x)
    return torch.where(size <= 2 * lam, soft(x, lam), torch.where(size <= gamma * lam, middle, x))


def capped_l1(x: Tensor, lam: float, t: float) -> Tensor:
    """Of lam min(|x|, t): the better of both branches."""
    size = x.abs()
    inner, outer = (size - lam).clamp_(0, t), size.clamp(min=t)
    inside = (inner - size).square_().mul_(0.5).add_(inner, alpha=lam)
    outside = (outer - size).square_().mul_(0.5).add_(lam * t)
    return torch.where(inside <= outside, inner, outer).copysign_(x)


def transformed_l1(x: Tensor, lam: float, a: float) -> Tensor:
    """Of lam (a + 1) |x| / (a + |x|)."""
    edge = a * a / (2 * (a + 1))
    threshold = lam * (a + 1) / a if lam <= edge else math.sqrt(2 * lam * (a + 1)) - a / 2
    size = x.abs()
    angle = (size + a).pow_(-3).mul_(-13.5 * lam * a * (a + 1)).add_(1).clamp_(-1, 1).acos_()
    found = angle.div_(3).cos_().mul_(size + a).mul_(2 / 3).add_(size / 3 - 2 * a / 3)
    return torch.where(size > threshold, found.copysign_(x), 0.0)


def log_sum(x: Tensor, lam: float, eps: float) -> Tensor:
    """Of lam log(1 + |x| / eps)."""
    size = x.abs()
    under = (size + eps).square_().sub_(4 * lam)
    root = (under.clamp(min=0).sqrt_().add_(size).sub_(eps)).mul_(0.5).clamp_(min=0)
    worth = (root - size).square_().mul_(0.5).add_(torch.log1p(root / eps), alpha=lam)
    better = (under >= 0) & (worth < 0.5 * size.square())
    return torch.where(better, root.copysign_(x), 0.0)


def eager(operator: Operator) -> Callable[[Tensor], Tensor]:
    """An operator of single entries in eager torch.

    Args:
        operator: its name and parameters.

    Returns:
        A function that gives a new tensor.
    """
    name, parameters = operator
    functions: dict[str, Callable[..., Tensor]] = {
        "l1": soft,
        "l0": lambda x, lam: torch.nn.functional.hardshrink(x, math.sqrt(2 * lam)),
        "lp": lp,
        "elastic net": elastic_net,
        "mcp": mcp,
        "scad": scad,
        "capped l1": capped_l1,
        "transformed l1": transformed_l1,
        "log-sum": log_sum,
    }
    return lambda x: functions[name](x, *parameters)


def top_k_numpy(x: Array, k: int) -> Array:
    """The k largest by size, found by a whole sort; of equals the first."""
    keep = np.argsort(-np.abs(x), kind="stable")[:k]
    found = np.zeros_like(x)
    found[keep] = x[keep]
    return found


def top_k_torch(x: Tensor, k: int) -> Tensor:
    """The same by torch.topk."""
    keep = x.abs().topk(k, sorted=False).indices
    return torch.zeros_like(x).scatter_(0, keep, x[keep])


def simplex_numpy(x: Array, radius: float) -> Array:
    """Projection on the non-negative numbers whose sum is the radius, by sorting.

    Example:
        >>> simplex_numpy(np.array([0.5, 2.0, 1.5]), 1.0)
        array([0.  , 0.75, 0.25])
    """
    ordered = np.sort(x)[::-1]
    shifts = (ordered.cumsum() - radius) / np.arange(1, len(x) + 1)
    last = int(np.count_nonzero(ordered > shifts)) - 1
    return np.asarray(np.maximum(x - shifts[last], 0))


def simplex_torch(x: Tensor, radius: float) -> Tensor:
    """The same in torch."""
    ordered = x.sort(descending=True).values
    shifts = (ordered.cumsum(0) - radius) / torch.arange(1, len(x) + 1, dtype=x.dtype)
    last = int((ordered > shifts).sum()) - 1
    return (x - shifts[last]).clamp_(min=0)


def l1_ball_numpy(x: Array, radius: float) -> Array:
    """Projection on the numbers whose sizes sum to at most the radius, by sorting."""
    size = np.abs(x)
    return x if size.sum() <= radius else np.copysign(simplex_numpy(size, radius), x)


def l1_ball_torch(x: Tensor, radius: float) -> Tensor:
    """The same in torch."""
    size = x.abs()
    return x if float(size.sum()) <= radius else simplex_torch(size, radius).copysign_(x)
