"""Maps between point clouds: the Monge gap of a map, and the hard c-transform of a potential."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.errors import ProblemError, ShapeError
from gossamer.ot.plans import pairwise, wide
from gossamer.ot.problem import check_values, floats, from_points, settings
from gossamer.ot.result import returned
from gossamer.ot.solve import as_dense, optimal_value, potentials

# Entries of a tile of costs: 8 MiB.
_TILE = 2**20


def monge_gap(
    x: Any,
    y: Any,
    a: Any = None,
    reg: Any = 1e-2,
    metric: str = "sqeuclidean",
    reg_type: str = "entropy",
    *,
    method: str = "auto",
    max_iter: int | None = None,
    tol: float = 1e-9,
    lazy: bool | None = None,
) -> Any:
    """The Monge gap of a map T with y_i = T(x_i): what T costs beyond an optimal plan.

        M(T) = sum_i a_i c(x_i, y_i) - W(x, y)      W = min_P <C, P> + reg R(P),  P 1 = P' 1 = a

    As a penalty on a network T it pulls towards maps that are optimal for the cost c, whatever y
    they reach. With the entropy and n points of equal weight it is at least reg (log n + 1), and at
    an optimal map at most reg (2 log n + 1), so it tends to 0 with reg there.

    Args:
        x: points [points, d] or [B, points, d], float32 or float64, torch or NumPy.
        y: their images, in x's shape.
        a: weights of the pairs, >= 0, [points] or [B, points]; None is uniform with sum 1.
        reg: regularisation strength > 0, in the unit of the metric.
        metric: "sqeuclidean", "euclidean", "l1" or "cosine".
        reg_type: "entropy" for sum P (log P - 1), or "KL" for KL(P | a a'), which adds a constant
            in x and y; the gap can then be negative.
        method: the algorithm; see `gossamer.ot.solve`.
        max_iter: cap on sweeps plus Newton steps; None is 10,000.
        tol: L1 error of the marginals at which the solver stops.
        lazy: True never stores the cost matrix; see `gossamer.ot.solve_sample`.

    Returns:
        A scalar, or [B] for a batch, in the dtype of the points; differentiable in x, y and a,
        twice unless the cost is lazy. For NumPy a number or an array.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.

    Reference:
        Uscidda & Cuturi 2023, "The Monge Gap: A Regularizer to Learn All Transport Maps"; that its
        W has this entropy is from memory.

    Example:
        >>> import torch, gossamer
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> [round(gossamer.ot.monge_gap(x, y, reg=1e-3).item(), 2) for y in (x + 3, 4 - x)]
        [0.0, 1.0]
    """
    problem = from_points(x, y, a, a, reg, metric, reg_type)
    px, py = problem.cost, problem.y
    if py is None or px.shape != py.shape:
        raise ShapeError(
            f"y has shape {list(getattr(y, 'shape', ()))} and x {list(getattr(x, 'shape', ()))}; "
            "y holds the image of each point of x, so the shapes must be equal"
        )
    how = settings(problem, method, tol, max_iter)
    dense = as_dense(problem, lazy)
    f, g, _ = potentials(dense, how)
    along = (problem.a * paired(px, py, problem.metric)).sum(1)
    return returned(problem, along - optimal_value(dense, f, g))


def c_transform(x: Any, y: Any, g: Any, metric: str = "sqeuclidean") -> Any:
    """The c-transform of a potential, f_i = min_j c(x_i, y_j) - g_j, tile by tile.

    The cost matrix is never stored. The gradient is that of the pair that attains the minimum.

    Args:
        x: points [rows, d] or [B, rows, d], float32 or float64, torch or NumPy.
        y: points [cols, d] or [B, cols, d].
        g: the potential, [cols] or [B, cols].
        metric: "sqeuclidean", "euclidean", "l1" or "cosine".

    Returns:
        The transform, [rows] or [B, rows], in the dtype of the points; differentiable in x, y and
        g, any number of times.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.

    Reference:
        Villani 2009, "Optimal Transport: Old and New", definition 5.2.

    Example:
        >>> import torch, gossamer
        >>> x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [3.0]])
        >>> gossamer.ot.c_transform(x, y, torch.tensor([0.0, 2.0]))
        tensor([ 0., -1.])
    """
    problem = from_points(x, y, None, None, 1.0, metric)
    px, py = problem.cost, problem.y
    potential = floats(g, "g")
    if py is None or potential.shape not in ((py.shape[1],), py.shape[:2]):
        raise ShapeError(
            f"g has shape {list(potential.shape)} and y {list(getattr(y, 'shape', ()))}; one "
            "number per point of y is needed"
        )
    potential = potential.double().expand(py.shape[:2])
    check_values(px, py, problem.metric, problem.a, problem.b, problem.reg, problem.rho)
    if not bool(potential.isfinite().all()):
        raise ProblemError("g has an entry that is NaN or infinite; finite numbers are needed")
    best = _nearest(px.detach(), py.detach(), potential.detach(), problem.metric)
    at = best[:, :, None].expand(-1, -1, py.shape[2])
    least = paired(px, py.gather(1, at), problem.metric) - potential.gather(1, best)
    return returned(problem, least)


@torch.no_grad()
def _nearest(x: Tensor, y: Tensor, g: Tensor, metric: str) -> Tensor:
    """The column of least c(x_i, y_j) - g_j for each row, [B, rows]."""
    width = y.shape[1] * (y.shape[2] if wide(metric) else 1)
    rows = max(1, _TILE // width)
    best = [
        (pairwise(x[:, at : at + rows], y, metric) - g[:, None, :]).argmin(2)
        for at in range(0, x.shape[1], rows)
    ]
    return torch.cat(best, 1)


def paired(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """The costs c(x_i, y_i) [B, points] of points [B, points, d]."""
    costs: Tensor = pairwise(x.unsqueeze(-2), y.unsqueeze(-2), metric)
    return costs[..., 0, 0]
