"""Compiled operators on groups of entries: norms, gains, and thresholds found in linear time.

`gossamer.prox.groupings.Groups` defines the groups. These functions take numbers only; penalties
with names and schedules are in `gossamer.prox`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from gossamer.backend import check_array
from gossamer.backend import prox as kernels
from gossamer.errors import DTypeError, ShapeError
from gossamer.prox.groupings import Groups
from gossamer.prox.operators.elementwise import in_place

Array = TypeVar("Array", Tensor, np.ndarray)


def _flat(x: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """The entries in row-major order as a contiguous vector; a view if possible."""
    x = check_array(x, "x", numpy=True)
    return x.contiguous().view(-1) if isinstance(x, Tensor) else np.ascontiguousarray(x).reshape(-1)


def _doubles(x: Any, what: str) -> Tensor:
    """A float64 vector, from a tensor, an array or a sequence."""
    if isinstance(x, Tensor) and x.dtype == torch.float64 and x.dim() == 1:
        return x.detach().contiguous()
    try:
        found = torch.as_tensor(x).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DTypeError(f"{what} are no vector of numbers: {error}") from None
    if found.dim() != 1:
        raise ShapeError(
            f"{what} have {found.dim()} dimensions; a vector with one number per group is needed"
        )
    return found.double().contiguous()


def _optional(x: Any, what: str) -> Tensor | None:
    return None if x is None else _doubles(x, what)


def group_norms(x: Tensor | np.ndarray, groups: Groups) -> Tensor:
    """Compute the L2 norm of each group.

    Args:
        x: float32 or float64, any shape and strides.
        groups: groups of as many entries as `x` has.

    Returns:
        The norms, float64 [count]; NaN for a group with a NaN. They are summed in float64, and are
        accurate even if squares overflow or underflow.

    Raises:
        DTypeError: the dtype of `x` is not float32 or float64.
        ShapeError: `x` is empty, or the groups have another number of entries.
        StructureError: pointers or indices are out of range.

    Example:
        >>> group_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), Groups(1, 2, 2))
        tensor([5., 0.], dtype=torch.float64)
    """
    return kernels.group_norms(_flat(x), groups)


def scale_groups_(x: Array, gains: Tensor | np.ndarray, groups: Groups) -> Array:
    """Multiply each group by its gain, in place.

    Args:
        x: float32 or float64, any shape and strides.
        gains: one factor per group, [count].
        groups: groups of as many entries as `x` has.

    Returns:
        `x`. Products that are zero are exactly +0.0; NaN stays NaN, and infinity times 0 is NaN.

    Raises:
        DTypeError: the dtype of `x` is not float32 or float64.
        ShapeError: `x` is empty, or groups or gains have another size.
        ArgumentError: `x` is read-only.
        StructureError: pointers or indices are out of range.

    Example:
        >>> scale_groups_(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.0]), Groups(1, 2, 1))
        tensor([0.5000, 0.0000])
    """
    by = _doubles(gains, "gains")
    return in_place(x, lambda v: kernels.scale_groups(v, groups, by))


def metric_group_l2_(
    x: Array, metric: Array, groups: Groups, lam: float | Tensor | np.ndarray
) -> Array:
    """Apply the proximal operator of the group lasso in a diagonal metric, in place.

    Each group becomes argmin_z 1/2 sum_i h_i (z_i - x_i)^2 + lam |z|, by the exact root of an
    equation in |z|.

    Args:
        x: float32 or float64, any shape and strides.
        metric: h > 0, in x's shape and dtype. A step size s is h = 1 / s.
        groups: groups of as many entries as `x` has.
        lam: a number, or one per group, [count].

    Returns:
        `x`. Zeros are exactly +0.0. A group with NaN or infinity becomes NaN.

    Raises:
        DTypeError: the dtype of `x` is not float32 or float64, or the metric has another dtype.
        ShapeError: `x` is empty, or the metric or the groups have another size.
        ArgumentError: `x` is read-only, the metric is not positive and finite, or `lam` is
            negative.

    Reference:
        Deleu and Bengio 2021, "Structured sparsity inducing adaptive optimizers for deep learning".

    Example:
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
    """Compute the proximal operator of the weighted group sparse envelope, as a gain per group.

    The envelope, with the share u_j of group j, is
    1/2 min_u { sum d_j |x_j|^2 / u_j : 0 <= u_j <= 1, sum c_j u_j <= k }.

    Args:
        norms: the norm of each group, [count], finite.
        k: budget, finite and at least 0; without `c` a number of groups.
        lam: weight of the envelope times the step size.
        d: weight of each group's energy, [count], positive; None is 1.
        c: cost of keeping each group, [count], positive; None is 1.
        h: metric of each group, [count], positive; None is 1.

    Returns:
        The gains, float64 [count], to multiply the groups by; and the number of group visits
        divided by count. Groups of zeros have gain 0. With lam = 0 all gains are 1; otherwise, with
        k = 0, all are 0.

    Raises:
        ShapeError: there are no groups, or weights have another size.
        ArgumentError: a norm is NaN, infinite or negative; `k` or `lam` is negative; or a weight is
            not positive.

    Reference:
        Refael, Arbel and Huleihel 2022, arXiv 2212.12921; with groups of one entry and unit
        weights, half the squared k-support norm (Argyriou, Foygel and Srebro 2012).

    Example:
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
    """Compute the weighted group sparse envelope and the shares u that attain it.

    Args:
        norms: as in `wgsef_gains`.
        k: as in `wgsef_gains`.
        d: as in `wgsef_gains`.
        c: as in `wgsef_gains`.

    Returns:
        The value (infinite for k = 0 unless all norms are 0) and the shares, [count], which are 0
        for groups of zeros. The gradient with respect to a non-zero x_j is d_j x_j / u_j.

    Raises:
        ShapeError, ArgumentError: as in `wgsef_gains`.

    Example:
        >>> wgsef_value(torch.tensor([3.0, 4.0]), k=1)[0]
        24.5
    """
    a = _doubles(norms, "norms")
    return kernels.wgsef_value(a, float(k), _optional(d, "d"), _optional(c, "c"))
