"""A transport problem in the solvers' form, and all checks of a caller's arguments.

    min_P <M, P> + reg * R(P)     P 1 = a, P' 1 = b     (or a KL penalty rho in place of a marginal)

Building a `Problem` checks shapes and dtypes. `check_values` checks values (NaN, negative mass,
unequal masses); only the solver calls it, on real data, so that torch.compile can trace the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.backend import check_array
from gossamer.backend.arrays import WIDE_FLOATS
from gossamer.errors import DTypeError, ProblemError, ShapeError
from gossamer.ot.core import Options, finite_spread

METRICS = {name: name for name in ("sqeuclidean", "euclidean", "l1", "cosine")}
METRICS["cityblock"] = "l1"
METHODS = ("auto", "sinkhorn", "newton", "published")
REGULARIZERS = ("KL", "entropy")
# Relative: float32 weights of a large problem sum to 1 within 1e-7.
MASS_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Settings(Options):
    """All settings of a call; `gossamer.ot.solve` describes each."""

    ridge: float = 0.0
    implicit: bool = True
    warm: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Problem:
    """A batch of problems of one size, in float64.

    Args:
        cost: [B, rows, cols], float32 or float64; or the points x [B, rows, d] of a lazy cost.
        y: the points [B, cols, d] of a lazy cost, else None.
        metric: metric that defines the cost of points; "" for a caller's cost matrix.
        a: weights [B, rows].
        b: weights [B, cols].
        reg: regularisation strengths [B].
        rho: penalties of the two marginals; infinite for an exact marginal.
        kl: True if R is KL(P | a b'), False if it is the entropy sum P (log P - 1).
        batched: whether the caller gave a batch.
        numpy: whether the caller gave NumPy arrays.
        dtype: dtype of the results.
    """

    cost: Tensor
    y: Tensor | None
    metric: str
    a: Tensor
    b: Tensor
    reg: Tensor
    rho: tuple[float, float]
    kl: bool
    batched: bool
    numpy: bool
    dtype: torch.dtype

    def detached(self) -> Problem:
        """The same problem without autograd's history."""
        y = None if self.y is None else self.y.detach()
        parts = (self.cost.detach(), y, self.metric, self.a.detach(), self.b.detach())
        rest = (self.rho, self.kl, self.batched, self.numpy, self.dtype)
        return Problem(*parts, self.reg.detach(), *rest)

    @property
    def solver_weights(self) -> tuple[Tensor, Tensor]:
        """The weights for a solver of the KL form.

        With a penalty rho, the optimum has P 1 = a exp(-f / rho) under the entropy, and
        f - reg log a in place of f under KL. Both agree for the weights a ** (rho / (rho + reg)).
        """
        if self.kl:
            return self.a, self.b
        return _power(self.a, self.rho[0], self.reg), _power(self.b, self.rho[1], self.reg)


def from_cost(
    cost: Any,
    a: Any,
    b: Any,
    reg: Any,
    reg_type: str = "KL",
    unbalanced: Any = None,
    unbalanced_type: str = "KL",
) -> Problem:
    """The problem of a cost matrix [rows, cols] or a batch [B, rows, cols]."""
    c = floats(cost, "M")
    if c.dim() not in (2, 3) or 0 in c.shape:
        raise ShapeError(
            f"M has shape {list(c.shape)}; give a cost matrix [rows, cols] or a batch "
            "[B, rows, cols], with no empty dimension"
        )
    batched = c.dim() == 3
    c3 = c if batched else c.unsqueeze(0)
    rest = _weights(c3.shape[0], c3.shape[1:], (a, b), reg, reg_type, unbalanced, unbalanced_type)
    return Problem(c3, None, "", *rest, batched, isinstance(cost, np.ndarray), c.dtype)


def from_points(
    x: Any,
    y: Any,
    a: Any,
    b: Any,
    reg: Any,
    metric: str,
    reg_type: str = "KL",
    unbalanced: Any = None,
    unbalanced_type: str = "KL",
) -> Problem:
    """The problem whose cost is a metric between points x [rows, d] and y [cols, d], or batches."""
    tx, ty = floats(x, "x"), floats(y, "y")
    if tx.dim() not in (2, 3) or 0 in tx.shape:
        raise ShapeError(
            f"x has shape {list(tx.shape)}; give points [points, d] or a batch [B, points, d], "
            "with no empty dimension"
        )
    if ty.dim() != tx.dim() or 0 in ty.shape:
        raise ShapeError(
            f"y has shape {list(ty.shape)} and x {list(tx.shape)}; give both as [points, d] or "
            "both as [B, points, d], with no empty dimension"
        )
    if ty.shape[-1] != tx.shape[-1] or ty.shape[:-2] != tx.shape[:-2]:
        raise ShapeError(
            f"y has shape {list(ty.shape)} and x {list(tx.shape)}; the sizes must agree except in "
            "the number of points"
        )
    if metric not in METRICS:
        raise ProblemError(
            f"metric is {metric!r:.80}; choose one of {', '.join(METRICS)}, or compute the cost "
            "matrix and use gossamer.ot.solve"
        )
    batched = tx.dim() == 3
    x3, y3 = (t.double() if batched else t.double().unsqueeze(0) for t in (tx, ty))
    sizes = (x3.shape[1], y3.shape[1])
    rest = _weights(x3.shape[0], sizes, (a, b), reg, reg_type, unbalanced, unbalanced_type)
    dtype = torch.promote_types(tx.dtype, ty.dtype)
    return Problem(x3, y3, METRICS[metric], *rest, batched, isinstance(x, np.ndarray), dtype)


def settings(
    problem: Problem,
    method: str = "auto",
    tol: Any = 1e-9,
    max_iter: Any = None,
    potentials_init: Any = None,
    grad: str = "implicit",
    omega: Any = 1.0,
    ridge: Any = 0.0,
) -> Settings:
    """The checked settings of a call."""
    if method not in METHODS:
        raise ProblemError(f"method is {method!r:.80}; choose one of {', '.join(METHODS)}")
    if grad not in ("implicit", "detach"):
        raise ProblemError(f"grad is {grad!r:.80}; choose implicit or detach")
    tol, omega, ridge = (
        checked_real(tol, "tol"),
        checked_real(omega, "omega"),
        checked_real(ridge, "ridge"),
    )
    if not 0 <= tol < math.inf:
        raise ProblemError(f"tol is {tol}; a positive number is needed")
    if tol == 0 and method != "sinkhorn":
        raise ProblemError(
            f"tol is 0 with method {method!r}; only method='sinkhorn' takes a fixed number of steps"
        )
    if not 1 <= omega < 2:
        raise ProblemError(f"omega is {omega}; over-relaxation needs 1 <= omega < 2")
    if omega != 1 and method != "sinkhorn":
        raise ProblemError(
            f"omega is {omega} with method {method!r}; only method='sinkhorn' is over-relaxed"
        )
    if not 0 <= ridge < math.inf:
        raise ProblemError(f"ridge is {ridge}; a number >= 0 is needed")
    if method == "published" and problem.rho != (math.inf, math.inf):
        raise ProblemError(
            "unbalanced was given with the published method, which supports only exact marginals; "
            "use method='auto'"
        )
    max_iter = Settings.max_iter if max_iter is None else max_iter
    whole = isinstance(max_iter, int | np.integer) and not isinstance(max_iter, bool)
    if not whole or not 1 <= max_iter < 2**31:
        raise ProblemError(f"max_iter is {max_iter!r:.80}; an integer in [1, 2^31) is needed")
    warm = _warm(problem, potentials_init)
    return Settings(method, tol, int(max_iter), omega, ridge, grad == "implicit", warm)


def check_values(
    cost: Tensor,
    y: Tensor | None,
    metric: str,
    a: Tensor,
    b: Tensor,
    reg: Tensor,
    rho: tuple[float, float],
    warm: tuple[Tensor | None, Tensor | None] = (None, None),
    infinite: bool = True,
) -> None:
    """Raise on invalid values; `infinite` says whether costs of a matrix may be plus infinity.

    Raises:
        ProblemError: the message names the argument and the first invalid entry.
    """
    name = "x" if y is not None else f"{metric} cost of x and y: entry " if metric else "M"
    spread = _check_finite(cost, name, forbidden=infinite and y is None and not metric)
    forbidden = spread == math.inf
    spread = finite_spread(cost) if forbidden else spread
    if y is not None:
        _check_finite(y, "y")
    _check_finite(reg, "reg")
    if bool((reg <= 0).any()):
        raise ProblemError(f"reg is {_first(reg <= 0, reg)}; a positive number is needed")
    if y is None and not math.isfinite(spread / float(reg.min())):
        raise ProblemError(
            f"reg is {float(reg.min())} for a cost M that spans {spread:.3g}; M / reg overflows: "
            "raise reg or rescale M"
        )
    if metric == "cosine":
        for name, points in (("x", cost), ("y", y)):
            zero = points is not None and (points == 0).all(-1)
            if zero is not False and bool(zero.any()):
                raise ProblemError(
                    f"{name}{_where(zero)} is the zero vector, whose cosine distance is undefined: "
                    "remove it or choose another metric"
                )
    for name, weights in (("a", a), ("b", b)):
        _check_finite(weights, name)
        if bool((weights < 0).any()):
            at = _where(weights < 0)
            raise ProblemError(f"{name}{at} is {_first(weights < 0, weights)}; mass must be >= 0")
        if bool((weights.sum(1) <= 0).any()):
            raise ProblemError(f"{name} has no mass; at least one entry must be positive")
    if forbidden:
        _check_partners(cost, a, b)
    for name, start in zip(("potentials_init[0]", "potentials_init[1]"), warm, strict=True):
        if start is not None:
            _check_finite(start, name)
    if rho == (math.inf, math.inf):
        mass_a, mass_b = a.sum(1), b.sum(1)
        far = (mass_a - mass_b).abs() > MASS_TOLERANCE * torch.maximum(mass_a, mass_b)
        if bool(far.any()):
            which = f" in problem {int(far.nonzero()[0])} of the batch" if len(far) > 1 else ""
            raise ProblemError(
                f"a sums to {_first(far, mass_a):.9g} and b to {_first(far, mass_b):.9g}"
                f"{which}; balanced transport needs equal masses (within a relative "
                f"{MASS_TOLERANCE:g}): rescale one, or set unbalanced="
            )


def floats(value: Any, name: str) -> Tensor:
    """A float32 or float64 tensor; it shares the memory of a NumPy array."""
    check_array(value, name, dtypes=WIDE_FLOATS, numpy=True, device=True)
    if isinstance(value, Tensor):
        return value
    array = np.ascontiguousarray(value)
    return torch.from_numpy(array if array.flags.writeable else array.copy()).view(value.shape)


def _weights(
    batch: int,
    sizes: tuple[int, ...],
    weights: tuple[Any, Any],
    reg: Any,
    reg_type: str,
    unbalanced: Any,
    unbalanced_type: str,
) -> tuple[Tensor, Tensor, Tensor, tuple[float, float], bool]:
    """(a, b, reg, rho, kl) in float64, one row per problem of the batch."""
    if reg_type not in REGULARIZERS:
        raise ProblemError(
            f"reg_type is {reg_type!r:.80}; choose KL or entropy (for a sparse plan see "
            "gossamer.ot.sparsity_constrained)"
        )
    if unbalanced_type != "KL":
        raise ProblemError(f"unbalanced_type is {unbalanced_type!r:.80}; only KL is supported")
    ready: list[Tensor] = []
    for name, value, size in zip("ab", weights, sizes, strict=True):
        if value is None:
            ready.append(torch.full((batch, size), 1.0 / size, dtype=torch.float64))
            continue
        w = floats(value, name)
        if w.shape not in ((size,), (batch, size)):
            raise ShapeError(
                f"{name} has shape {list(w.shape)}; [{size}] is needed, or [{batch}, {size}] with "
                "one row per problem"
            )
        ready.append(w.double().expand(batch, size))
    return ready[0], ready[1], _regs(reg, batch), _penalties(unbalanced), reg_type == "KL"


def _regs(reg: Any, batch: int) -> Tensor:
    if isinstance(reg, Tensor | np.ndarray):
        t = floats(reg, "reg").double()
        if t.shape not in ((), (1,), (batch,)):
            raise ShapeError(
                f"reg has shape {list(t.shape)}; give a number, or one per problem, [{batch}]"
            )
        return t.expand(batch)
    value = checked_real(reg, "reg")
    if not 0 < value < math.inf:
        raise ProblemError(f"reg is {value}; a positive number is needed")
    return torch.full((batch,), value, dtype=torch.float64)


def _penalties(unbalanced: Any) -> tuple[float, float]:
    pair = unbalanced if isinstance(unbalanced, tuple | list) else (unbalanced, unbalanced)
    if len(pair) != 2:
        raise ProblemError(f"unbalanced has {len(pair)} entries; give a number or a pair of them")
    rho = [math.inf if r is None else checked_real(r, "unbalanced") for r in pair]
    if not all(r > 0 for r in rho):
        raise ProblemError(f"unbalanced is {unbalanced!r:.80}; positive numbers are needed")
    return rho[0], rho[1]


def _power(w: Tensor, rho: float, reg: Tensor) -> Tensor:
    """The weights to the power rho / (rho + reg); the derivative at 0 is 0, not NaN."""
    if rho == math.inf:
        return w
    return torch.where(w > 0, torch.where(w > 0, w, 1.0) ** (rho / (rho + reg))[:, None], 0.0)


def checked_real(value: Any, name: str) -> float:
    """`value` as a float; DTypeError if it is not a real number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise DTypeError(f"{name} is {value!r:.80}; a number is needed")
    return float(value)


def _warm(problem: Problem, start: Any) -> tuple[Tensor, Tensor] | None:
    if start is None:
        return None
    if not isinstance(start, tuple | list) or len(start) != 2:
        raise DTypeError("potentials_init is not a pair (f, g) of potentials; give two arrays")
    ready = []
    for i, (value, w) in enumerate(zip(start, (problem.a, problem.b), strict=True)):
        t = floats(value, f"potentials_init[{i}]").detach().double()
        if t.shape not in (w.shape, w.shape[1:]):
            raise ShapeError(
                f"potentials_init[{i}] has shape {list(t.shape)}; {list(w.shape[1:])} is needed, "
                f"or {list(w.shape)}"
            )
        ready.append(t.expand(w.shape))
    return ready[0], ready[1]


def _check_finite(t: Tensor, name: str, forbidden: bool = False) -> float:
    """The range max - min; raises ProblemError on NaN and on infinity.

    With `forbidden` entries may be plus infinity; then the range is infinite.
    """
    low, high = (float(v) for v in torch.aminmax(t.detach()))
    if math.isfinite(low) and math.isfinite(high):
        return high - low
    bad = ~torch.isfinite(t)
    if forbidden:
        bad &= t != math.inf
        if not bool(bad.any()):
            return math.inf
    raise ProblemError(f"{name}{_where(bad)} is {_first(bad, t)}; finite numbers are needed")


def _check_partners(cost: Tensor, a: Tensor, b: Tensor) -> None:
    allowed = cost < math.inf
    for name, w, line, partners in (
        ("a", a, "row", (allowed & (b > 0)[:, None, :]).any(2)),
        ("b", b, "column", (allowed & (a > 0)[:, :, None]).any(1)),
    ):
        alone = (w > 0) & ~partners
        if bool(alone.any()):
            raise ProblemError(
                f"{name}{_where(alone)} is {_first(alone, w)}, and every cost of that {line} of M "
                "is infinite, so its mass cannot go anywhere: allow a pair, or set the mass to 0"
            )


def _first(bad: Tensor, t: Tensor) -> float:
    return float(t[bad][0])


def _where(bad: Tensor) -> str:
    """The index of the first bad entry; the batch index is omitted for a batch of one."""
    index = bad.nonzero()[0].tolist()
    return str(index if bad.shape[0] > 1 else index[1:]) if bad.dim() > 1 else ""
