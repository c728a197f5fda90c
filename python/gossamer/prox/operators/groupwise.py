"""Operators on groups of entries, compiled: norms, gains, and thresholds found in linear time.

The entries of a group are named by `gossamer.prox.groupings.Groups`. Penalties with names and
schedules are in `gossamer.prox`; the functions here take numbers only.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from gossamer.backend import prox as kernels
from gossamer.errors import DTypeError, ShapeError
from gossamer.prox.groupings import Groups
from gossamer.prox.operators.elementwise import in_place

Array = TypeVar("Array", Tensor, np.ndarray)


def _flat(x: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """The entries in row-major order as a contiguous vector; a view where that is possible."""
    if isinstance(x, Tensor):
        return x.detach().contiguous().view(-1)
    if isinstance(x, np.ndarray):
        return np.ascontiguousarray(x).reshape(-1)
    raise DTypeError(f"got {type(x).__name__}; a torch tensor or a NumPy array is needed")


def _doubles(x: Any, what: str) -> Tensor:
    """A float64 vector, from a tensor, an array or a sequence."""
    if isinstance(x, Tensor) and x.dtype == torch.float64 and x.dim() == 1:
        return x.detach().contiguous()
    found = torch.as_tensor(x).detach()
    if found.dim() != 1:
        raise ShapeError(
            f"{what} have {found.dim()} dimensions; one number for each group is needed"
        )
    return found.double().contiguous()


def _optional(x: Any, what: str) -> Tensor | None:
    return None if x is None else _doubles(x, what)


def group_norms(x: Tensor | np.ndarray, groups: Groups) -> Tensor:
    """The L2 norm of each group.

    Args:
        x: float32 or float64, any shape and strides.
        groups: made for ``x``'s number of entries.

    Returns:
        float64 [count]; NaN for a group with a NaN. Summed in float64, and not disturbed by squares
        that overflow or vanish.

    Raises:
        DTypeError: A dtype other than float32 or float64.
        ShapeError: An empty ``x``, or groups for another number of entries.
        StructureError: Pointers or indices that leave the tensor.

    >>> group_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), Groups(1, 2, 2))
    tensor([5., 0.], dtype=torch.float64)
    """
    return kernels.group_norms(_flat(x), groups)


def scale_groups_(x: Array, gains: Tensor | np.ndarray, groups: Groups) -> Array:
    """Multiplies each group by its gain, in place.

    Args:
        x: float32 or float64, any shape and strides.
        gains: [count].
        groups: made for ``x``'s number of entries.

    Returns:
        ``x``. Products that are zero are exactly +0.0; NaN stays NaN and infinity times 0 is NaN.

    Raises:
        DTypeError: A dtype other than float32 or float64.
        ShapeError: An empty or read-only ``x``, groups or gains of another size.
        StructureError: Pointers or indices that leave the tensor.

    >>> scale_groups_(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.0]), Groups(1, 2, 1))
    tensor([0.5000, 0.0000])
    """
    by = _doubles(gains, "gains")
    return in_place(x, lambda v: kernels.scale_groups(v, groups, by))


def metric_group_l2_(
    x: Array, metric: Array, groups: Groups, lam: float | Tensor | np.ndarray
) -> Array:
    """The proximal operator of the group lasso in an elementwise metric, in place.

    Each group becomes argmin_z 1/2 sum_i h_i (z_i - x_i)^2 + lam |z|, by the exact root of one
    equation in |z|.

    Args:
        x: float32 or float64, any shape and strides.
        metric: h, positive, of ``x``'s shape and dtype. A step s is h = 1 / s.
        groups: made for ``x``'s number of entries.
        lam: a number, or [count].

    Returns:
        ``x``. Zeros are exactly +0.0. A group with NaN or infinity becomes NaN.

    Raises:
        DTypeError: A dtype other than float32 or float64, or a metric of another dtype.
        ShapeError: An empty or read-only ``x``, another shape of the metric, a metric that is not
            positive and finite, a negative ``lam``, groups of another size.

    Reference:
        Deleu and Bengio 2021, "Structured sparsity inducing adaptive optimizers for deep learning".

    >>> x = torch.tensor([3.0, 4.0])
    >>> metric_group_l2_(x, torch.full((2,), 2.0), Groups(1, 1, 2), lam=5.0)
    tensor([1.5000, 2.0000])
    """
    h = _flat(metric)
    if tuple(metric.shape) != tuple(x.shape):
        raise ShapeError(
            f"got a metric of shape {tuple(metric.shape)} for entries of shape {tuple(x.shape)}; "
            "they must be the same"
        )
    if isinstance(lam, Tensor | np.ndarray) and lam.ndim > 0:
        by = _doubles(lam, "lam")
    else:
        by = torch.full((max(groups.count, 0),), float(lam), dtype=torch.float64)
    return in_place(x, lambda v: kernels.metric_group_l2(v, h, groups, by))


def wgsef_gains(
    norms: Tensor | np.ndarray,
    k: float,
    lam: float,
    d: Tensor | np.ndarray | None = None,
    c: Tensor | np.ndarray | None = None,
    h: Tensor | np.ndarray | None = None,
) -> tuple[Tensor, float]:
    """The proximal operator of lam times the weighted group sparse envelope, as gains of groups.

    With u_j the share of group j, the envelope is
    1/2 min_u { sum d_j |x_j|^2 / u_j : 0 <= u_j <= 1, sum c_j u_j <= k }.

    Args:
        norms: the norms of the groups [m], finite.
        k: budget, finite and at least 0; with ``c`` left out, a number of groups.
        lam: strength, step included.
        d: weights of the groups' energy [m], positive; default 1.
        c: cost of keeping each group [m], positive; default 1.
        h: metric, one number for each group [m], positive; default 1.

    Returns:
        Gains float64 [m] to multiply the groups by, and how often a group was looked at, divided by
        m. Groups of zeros get gain 0. All gains are 1 for lam = 0, and otherwise 0 for k = 0.

    Raises:
        ShapeError: No groups, NaN, infinite or negative norms, a negative ``k`` or ``lam``, weights
            that are not positive or of another size.

    Reference:
        Refael, Arbel and Huleihel 2022, arXiv 2212.12921; with groups of one entry and unit
        weights, half the squared k-support norm (Argyriou, Foygel and Srebro 2012).

    >>> wgsef_gains(torch.tensor([0.0, 5.0, 10.0, 15.0, 20.0]), k=1, lam=3.0)[0]
    tensor([0.0000, 0.0000, 0.0000, 0.0000, 0.2500], dtype=torch.float64)
    """
    a = _doubles(norms, "norms")
    return kernels.wgsef_gains(
        a, float(k), float(lam), _optional(d, "d"), _optional(c, "c"), _optional(h, "h")
    )


def wgsef_value(
    norms: Tensor | np.ndarray,
    k: float,
    d: Tensor | np.ndarray | None = None,
    c: Tensor | np.ndarray | None = None,
) -> tuple[float, Tensor]:
    """The weighted group sparse envelope, and the shares that attain it.

    Args:
        norms: as for `wgsef_gains`, and so are the others.
        k: budget.
        d: weights.
        c: costs.

    Returns:
        The value (infinite for k = 0 unless all norms are 0) and the shares u [m], 0 for groups of
        zeros. The gradient with respect to group j is d_j x_j / u_j where x_j is not 0.

    Raises:
        ShapeError: As `wgsef_gains`.

    >>> wgsef_value(torch.tensor([3.0, 4.0]), k=1)[0]
    24.5
    """
    a = _doubles(norms, "norms")
    return kernels.wgsef_value(a, float(k), _optional(d, "d"), _optional(c, "c"))
