"""The Sinkhorn divergence between point clouds as a training loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from gossamer.ot.problem import Problem, Settings, from_points, settings
from gossamer.ot.result import returned
from gossamer.ot.solve import as_dense, optimal_value, potentials


def loss(
    x: Any,
    y: Any,
    a: Any = None,
    b: Any = None,
    reg: Any = 1e-2,
    metric: str = "sqeuclidean",
    debias: bool = True,
    *,
    method: str = "auto",
    max_iter: int | None = None,
    tol: float = 1e-9,
    lazy: bool | None = None,
) -> Any:
    """The entropic transport value between weighted points, debiased into a divergence.

        S(x, y) = V(x, y) - V(x, x) / 2 - V(y, y) / 2       V = min_P <M, P> + reg KL(P | a b')

    S is 0 for equal clouds and positive otherwise. V alone has its minimum elsewhere: minimising it
    shrinks a cloud towards its mean.

    Args:
        x: points [rows, d] or [B, rows, d], float32 or float64, torch or NumPy.
        y: points [cols, d] or [B, cols, d].
        a: weights of x, >= 0, [rows] or [B, rows]; None is uniform with sum 1.
        b: weights of y, of the same mass, [cols] or [B, cols]; None is uniform with sum 1.
        reg: regularisation strength > 0, in the unit of the metric.
        metric: "sqeuclidean", "euclidean", "l1" or "cosine".
        debias: False returns V(x, y) alone.
        method: the algorithm; see `gossamer.ot.solve`.
        max_iter: cap on sweeps plus Newton steps; None is 10,000.
        tol: L1 error of the marginals at which the solver stops.
        lazy: True never stores the cost matrix; see `gossamer.ot.solve_sample`.

    Returns:
        A scalar, or [B] for a batch, in the dtype of the points; differentiable in x, y, a and b,
        twice unless the cost is lazy. For NumPy a number or an array.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.

    Reference:
        Feydy, Sejourne, Vialard, Amari, Trouve & Peyre 2019, "Interpolating between Optimal
        Transport and MMD using Sinkhorn Divergences", Theorem 1.

    Example:
        >>> import torch, gossamer
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]], requires_grad=True)
        >>> y = x.detach() + torch.tensor([0.0, 2.0])
        >>> value = gossamer.ot.loss(x, y, reg=0.1)
        >>> round(value.item(), 4), torch.autograd.grad(value, x)[0].round(decimals=4).tolist()
        (4.0, [[0.0, -2.0], [0.0, -2.0]])
    """
    between = from_points(x, y, a, b, reg, metric)
    how = settings(between, method, tol, max_iter)
    value = _value(between, how, lazy)
    if debias:
        # The checked weights keep autograd's history of a and b, and replace None.
        for points, weights in ((between.cost, between.a), (between.y, between.b)):
            within = from_points(points, points, weights, weights, between.reg, metric)
            value = value - 0.5 * _value(within, replace(how, method="symmetric"), lazy)
    return returned(between, value)


def _value(problem: Problem, how: Settings, lazy: bool | None) -> Tensor:
    problem = as_dense(problem, lazy)
    f, g, _ = potentials(problem, how)
    return optimal_value(problem, f, g)
