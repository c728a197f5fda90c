"""Proximal operators and projections on contiguous vectors, in place.

`x` is always a contiguous vector of float32 or float64, a tensor or a NumPy array, and is
overwritten. Groups are (outer, count, inner, indptr, indices), see `gossamer.prox`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.backend.arrays import Array
from gossamer.backend.registry import module_of

GroupArguments = tuple[int, int, int, Tensor | None, Tensor | None]


def elements(
    x: Array, kind: str, params: tuple[float, ...], step: float | Array, positive: bool = False
) -> None:
    """Apply a separable operator, if `positive` under the constraint x >= 0.

    `step` is a number, or a vector with one step per entry.
    """
    if isinstance(step, int | float):
        module_of(x).prox.elements(x, kind, params, float(step), None, positive)
    else:
        module_of(x).prox.elements(x, kind, params, 0.0, step, positive)


def adamw(
    param: Tensor,
    grad: Array,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    lr: float,
    bias1: float,
    root_bias2: float,
    shrink: float,
    kind: str,
    params: tuple[float, ...],
    weights: Tensor | None = None,
    positive: bool = False,
) -> None:
    """Take an AdamW step and apply a separable operator in its metric, in one pass.

    Args:
        param: Vector of entries; overwritten.
        grad: Vector of gradients.
        exp_avg: First moments; overwritten.
        exp_avg_sq: Second moments; overwritten.
        beta1: Decay of the first moments.
        beta2: Decay of the second moments.
        eps: Added to the root of the second moments.
        lr: Learning rate.
        bias1: `1 - beta1^step`.
        root_bias2: `sqrt(1 - beta2^step)`.
        shrink: Factor of the decoupled weight decay.
        kind: Name of the operator.
        params: Parameters of the operator.
        weights: Vector of factors of the penalty, or None.
        positive: Whether the constraint x >= 0 is added.
    """
    module_of(param).prox.adamw(
        param,
        grad,
        exp_avg,
        exp_avg_sq,
        beta1,
        beta2,
        eps,
        lr,
        bias1,
        root_bias2,
        shrink,
        kind,
        params,
        weights,
        positive,
    )


def group_norms(x: Array, groups: GroupArguments) -> Tensor:
    """Return the L2 norm of each group, float64 [count]."""
    device = x.device if isinstance(x, Tensor) else "cpu"
    norms = torch.empty(max(groups[1], 0), dtype=torch.float64, device=device)
    module_of(x).prox.group_norms(x, *groups, norms)
    return norms


def scale_groups(x: Array, groups: GroupArguments, gains: Tensor) -> None:
    """Multiply each group by its gain, float64 [count]."""
    module_of(x).prox.scale_groups(x, *groups, gains)


def metric_group_l2(x: Array, metric: Array, groups: GroupArguments, lam: Tensor) -> None:
    """Apply the group-lasso operator in a diagonal metric; `lam` is float64 [count]."""
    module_of(x).prox.metric_group_l2(x, metric, *groups, lam)


def wgsef_gains(
    norms: Tensor, k: float, lam: float, d: Tensor | None, c: Tensor | None, h: Tensor | None
) -> tuple[Tensor, float]:
    """Return the gains of the weighted group sparse envelope, and passes over the groups.

    Args:
        norms: float64 [count], norms of the groups.
        k: Budget.
        lam: Strength times step.
        d: float64 [count], weights of the energy, or None for 1.
        c: float64 [count], costs, or None for 1.
        h: float64 [count], metric, or None for 1.
    """
    gains = torch.empty_like(norms)
    passes = module_of(norms).prox.wgsef_gains(norms, k, lam, d, c, h, gains)
    return gains, passes


def wgsef_value(
    norms: Tensor, k: float, d: Tensor | None, c: Tensor | None
) -> tuple[float, Tensor]:
    """Return the weighted group sparse envelope and the shares that attain it."""
    shares = torch.empty_like(norms)
    return module_of(norms).prox.wgsef_value(norms, k, d, c, shares), shares


def top_k(x: Array, k: int) -> None:
    """Keep the k entries of largest magnitude."""
    module_of(x).prox.top_k(x, k)


def l1_ball(x: Array, radius: float) -> None:
    """Project onto sum |x| <= radius."""
    module_of(x).prox.l1_ball(x, radius)


def simplex(x: Array, radius: float) -> None:
    """Project onto x >= 0, sum x = radius."""
    module_of(x).prox.simplex(x, radius)


def l1_minus_l2(x: Array, lam: float, alpha: float) -> None:
    """Apply the operator of lam (|x|_1 - alpha |x|_2)."""
    module_of(x).prox.l1_minus_l2(x, lam, alpha)


def isotonic(x: Array, metric: Array | None, groups: GroupArguments, falling: bool) -> None:
    """Make each group rise, or fall, in the order of its entries."""
    module_of(x).prox.isotonic(x, metric, *groups, falling)


def total_variation(x: Array, metric: Array | None, groups: GroupArguments, lam: float) -> None:
    """Apply the operator of lam sum |x_{i+1} - x_i| within each group."""
    module_of(x).prox.total_variation(x, metric, *groups, lam)


def simplices(x: Array, groups: GroupArguments, radius: float) -> None:
    """Project each group onto x >= 0, sum x = radius."""
    module_of(x).prox.simplices(x, *groups, radius)


def path_norm(v: Array, w: Array, thresholds: Array) -> None:
    """Apply the joint operator of v_k and w_k for each neuron k; v and w are overwritten.

    Args:
        v: [neurons], any stride.
        w: [neurons, inputs], any strides.
        thresholds: [neurons, inputs].
    """
    module_of(w).prox.path_norm(v, w, thresholds)


__all__ = [
    "adamw",
    "elements",
    "group_norms",
    "isotonic",
    "l1_ball",
    "l1_minus_l2",
    "metric_group_l2",
    "path_norm",
    "scale_groups",
    "simplex",
    "simplices",
    "top_k",
    "total_variation",
    "wgsef_gains",
    "wgsef_value",
]
