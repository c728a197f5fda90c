"""`ot.barycenter`, `barycenter_debiased`, `barycenter_unbalanced` and one of points.

Iterative Bregman projections on the kernel K = exp(-M / reg), in logarithms and float64. One
histogram a column; each is joined to the barycenter q by a plan diag(u_k) K diag(v_k):

    u_k = (a_k / K v_k)^s      q from the K' u_k and the weights      v_k = (q / K' u_k)^s

    balanced     s = 1 and q = prod_k (K' u_k)^w_k
    unbalanced   s = reg_m / (reg_m + reg) and q = (sum_k w_k (K' u_k)^(1-s))^(1/(1-s))

Reference:
    Benamou, Carlier, Cuturi, Nenna & Peyre 2015; Chizat, Peyre, Schmitzer & Vialard 2018; Janati,
    Cuturi & Gramfort 2020, "Debiased Sinkhorn barycenters".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gossamer.arguments import is_number
from gossamer.errors import ConvergenceWarning, ProblemError, ShapeError
from gossamer.ot.pot_backend.arguments import array, check_tuning, chosen, say
from gossamer.ot.pot_backend.sweeps import sinkhorn

_EVERY = 10  # iterations between two looks at the error
_LEAST = 1e-300  # mass of an empty bin: its logarithm is finite


def barycenter(
    A: Any,
    M: Any,
    reg: float,
    weights: Any = None,
    method: str = "sinkhorn",
    numItermax: int = 10000,
    stopThr: float = 1e-4,
    verbose: bool = False,
    log: bool = False,
    warn: bool = True,
    **kwargs: Any,
) -> Any:
    """The entropic barycenter of histograms, as `ot.barycenter` returns it.

    Args:
        A: histograms [bins, k], one per column.
        M: cost [bins, bins].
        reg: regularisation strength > 0.
        weights: weight of each histogram [k]; None is uniform.
        method: "sinkhorn", "sinkhorn_log" or "sinkhorn_stabilized"; all are computed in
            logarithms.
        numItermax: cap on the iterations.
        stopThr: spread of the histograms' marginals at which the iterations stop.
        verbose: True prints the error.
        log: True also returns a dictionary of err and niter.
        warn: True warns if the iterations do not converge.
        kwargs: tau; it changes nothing.

    Returns:
        The barycenter [bins]; torch's is differentiable through the iterations.

    Raises:
        ProblemError, ShapeError, DTypeError: the message names the argument.
    """
    chosen(method, ("sinkhorn", "sinkhorn_log", "sinkhorn_stabilized"))
    return _fixed(A, M, reg, weights, numItermax, stopThr, verbose, log, warn, kwargs, False)


def barycenter_debiased(
    A: Any,
    M: Any,
    reg: float,
    weights: Any = None,
    method: str = "sinkhorn",
    numItermax: int = 10000,
    stopThr: float = 1e-4,
    verbose: bool = False,
    log: bool = False,
    warn: bool = True,
    **kwargs: Any,
) -> Any:
    """The barycenter without the blur of the entropy, as `ot.bregman.barycenter_debiased`.

    Args:
        A: as in `barycenter`, and so are the other arguments.
        M: cost.
        reg: regularisation strength.
        weights: weight of each histogram.
        method: "sinkhorn" or "sinkhorn_log".
        numItermax: cap on the iterations.
        stopThr: change of the barycenter at which the iterations stop.
        verbose: True prints the error.
        log: True also returns a dictionary.
        warn: True warns if the iterations do not converge.
        kwargs: options that change nothing.

    Returns:
        The barycenter [bins].

    Raises:
        ProblemError, ShapeError, DTypeError: the message names the argument.
    """
    chosen(method, ("sinkhorn", "sinkhorn_log"))
    return _fixed(A, M, reg, weights, numItermax, stopThr, verbose, log, warn, kwargs, True)


def barycenter_unbalanced(
    A: Any,
    M: Any,
    reg: float,
    reg_m: float,
    method: str = "sinkhorn",
    weights: Any = None,
    numItermax: int = 1000,
    stopThr: float = 1e-6,
    verbose: bool = False,
    log: bool = False,
    **kwargs: Any,
) -> Any:
    """The barycenter under penalised marginals, as `ot.unbalanced.barycenter_unbalanced`.

    Args:
        A: histograms [bins, k], of any masses.
        M: cost [bins, bins].
        reg: regularisation strength > 0.
        reg_m: weight > 0 of the marginals' KL penalty.
        method: any of POT's names; all are computed in logarithms.
        weights: weight of each histogram [k]; None is uniform.
        numItermax: cap on the iterations.
        stopThr: relative change of the barycenter at which the iterations stop.
        verbose: True prints the error.
        log: True also returns a dictionary of err, niter, logu and logv.
        kwargs: tau; it changes nothing.

    Returns:
        The barycenter [bins].

    Raises:
        ProblemError, ShapeError, DTypeError: the message names the argument.
    """
    names = ("sinkhorn", "sinkhorn_stabilized", "sinkhorn_reg_scaling",
             "sinkhorn_translation_invariant")  # fmt: skip
    if chosen(method, names) in names[2:]:
        say(f"method {method} is not implemented for barycenters; Gossamer's solver is used")
    check_tuning(kwargs)
    if not (is_number(reg_m) and 0 < float(reg_m) < math.inf):
        raise ProblemError(f"reg_m is {reg_m!r:.80}; a positive number is needed")
    task = _Task.of(A, M, reg, weights)
    s = float(reg_m) / (float(reg_m) + float(reg))
    log_v, log_q = torch.zeros_like(task.log_a), task.log_a.new_zeros(len(task.log_a))
    log_u = log_v
    for step in range(int(numItermax)):
        before = log_q
        log_u = s * (task.log_a - task.rows(log_v))
        reached = task.columns(log_u)
        log_q = torch.logsumexp((1 - s) * reached + task.log_weights, 1) / (1 - s)
        log_v = s * (log_q[:, None] - reached)
        q, last = log_q.exp(), before.exp()
        error = float((q - last).abs().max() / max(float(q.max()), float(last.max()), 1.0))
        if task.note(error, step, stopThr if step > 10 else 0.0, verbose):
            break
    else:
        task.warn(numItermax)
    found = task.out(log_q.exp())
    return (found, task.log | {"logu": task.out(log_u), "logv": task.out(log_v)}) if log else found


def free_support_sinkhorn_barycenter(
    measures_locations: Any,
    measures_weights: Any,
    X_init: Any,
    reg: float,
    b: Any = None,
    weights: Any = None,
    numItermax: int = 100,
    numInnerItermax: int = 1000,
    stopThr: float = 1e-7,
    verbose: bool = False,
    log: Any = None,
    **kwargs: Any,
) -> Any:
    """Points that are the barycenter of clouds, as `ot.bregman.free_support_sinkhorn_barycenter`.

    Args:
        measures_locations: the clouds, arrays [points_k, d].
        measures_weights: their weights [points_k].
        X_init: the points to start from [points, d].
        reg: regularisation strength > 0.
        b: weights of the barycenter's points; None is uniform.
        weights: weight of each cloud; None is uniform.
        numItermax: cap on the moves.
        numInnerItermax: cap on the iterations of each plan.
        stopThr: squared length of a move at which they stop.
        verbose: True prints the length of each move.
        log: True also returns a dictionary of displacement_square_norms.
        kwargs: options of `sinkhorn`.

    Returns:
        The points [points, d].

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.

    Reference:
        Cuturi & Doucet 2014, "Fast Computation of Wasserstein Barycenters", algorithm 2.
    """
    from gossamer.ot.pot_backend.solvers import cost_of

    x = array(X_init, "X_init")
    clouds = [array(cloud, "measures_locations") for cloud in measures_locations]
    shares = [1 / len(clouds)] * len(clouds) if weights is None else weights
    own = x[:, 0] * 0 + 1 / len(x) if b is None else array(b, "b")
    moves = []
    for step in range(numItermax):
        to = 0.0 * x
        for cloud, mass, share in zip(clouds, measures_weights, shares, strict=True):
            cost = cost_of(x, cloud, "sqeuclidean")
            plan = sinkhorn(own, mass, cost, reg, numItermax=numInnerItermax, **kwargs)
            to = to + share / own[:, None] * (plan @ cloud)
        moves.append(((to - x) ** 2).sum())
        x = to
        if verbose:
            print(f"iteration {step}, squared displacement {float(moves[-1]):.3g}")
        if float(moves[-1]) <= stopThr:
            break
    return (x, {"displacement_square_norms": moves}) if log else x


def _fixed(
    A: Any,
    M: Any,
    reg: float,
    weights: Any,
    max_iter: int,
    tol: float,
    verbose: bool,
    log: bool,
    warn: bool,
    tuning: dict[str, Any],
    debiased: bool,
) -> Any:
    """The balanced barycenter; debiased, q is also multiplied by c, whose own q is c K c = q."""
    check_tuning(tuning)
    task = _Task.of(A, M, reg, weights)
    log_v = torch.zeros_like(task.log_a)
    log_c = task.log_a.new_zeros(len(task.log_a))
    share = task.log_weights.exp()
    log_q = before = log_c
    for step in range(int(max_iter)):
        reached = task.columns(task.log_a - task.rows(log_v))
        log_q = (share * reached).sum(1) + log_c
        if debiased:
            # Janati et al., algorithm 1: one damped step towards c K c = q.
            log_c = 0.5 * (log_c + log_q - task.columns(log_c[:, None])[:, 0])
        if step % _EVERY == 1:
            spread = (log_v + reached).exp().std(1, correction=0).sum()
            moved = (log_q.exp() - before.exp()).abs().max()
            error = float(moved if debiased else spread)
            if task.note(error, step, tol if step > 20 or not debiased else 0.0, verbose):
                break
        before = log_q
        log_v = log_q[:, None] - reached
    else:
        if warn:
            task.warn(max_iter)
    found = task.out(log_q.exp())
    return (found, task.log) if log else found


@dataclass
class _Task:
    """The histograms and the kernel in logarithms, and the record of the iterations."""

    log_a: Tensor  # [bins, k]
    log_kernel: Tensor  # [bins, bins]
    log_weights: Tensor  # [k]
    out: Callable[[Tensor], Any]
    log: dict[str, Any] = field(default_factory=lambda: {"err": [], "niter": 0})

    @classmethod
    def of(cls, A: Any, M: Any, reg: float, weights: Any) -> _Task:
        a, cost = array(A, "A"), array(M, "M")
        hists, costs = (torch.as_tensor(x).double() for x in (a, cost))
        if hists.dim() != 2 or 0 in hists.shape or costs.shape != (len(hists),) * 2:
            raise ShapeError(
                f"A has shape {list(hists.shape)} and M {list(costs.shape)}; histograms "
                "[bins, k] and a cost [bins, bins] are needed"
            )
        if not bool(((hists >= 0) & (hists < math.inf)).all()):
            raise ProblemError("A has an entry that is no mass; finite numbers >= 0 are needed")
        if not bool((costs > -math.inf).all()):
            raise ProblemError("M has an entry that is NaN or minus infinity; costs are needed")
        if not 0 < float(reg) < math.inf:
            raise ProblemError(f"reg is {reg!r:.80}; a positive number is needed")
        k = hists.shape[1]
        w = torch.full((k,), 1 / k, dtype=torch.float64)
        if weights is not None:
            w = torch.as_tensor(array(weights, "weights"))
        if w.shape != (k,) or not bool((w >= 0).all()):
            raise ShapeError(f"weights has shape {list(w.shape)}; [{k}] numbers >= 0 are needed")

        def out(x: Tensor) -> Any:
            return x.to(a.dtype) if isinstance(a, Tensor) else x.detach().numpy().astype(a.dtype)

        return cls((hists + _LEAST).log(), -costs / reg, w.double().log(), out)

    def rows(self, log_v: Tensor) -> Tensor:
        """Log K v [bins, k]."""
        return self._product(self.log_kernel, log_v)

    def columns(self, log_u: Tensor) -> Tensor:
        """Log K' u [bins, k]."""
        return self._product(self.log_kernel.T, log_u)

    def _product(self, log_kernel: Tensor, logs: Tensor) -> Tensor:
        # One histogram at a time: all of them would need [bins, bins, k].
        return torch.stack([torch.logsumexp(log_kernel + x, 1) for x in logs.unbind(1)], 1)

    def note(self, error: float, step: int, tol: float, verbose: bool) -> bool:
        """Record an error; True if it is below tol."""
        self.log["err"].append(error)
        self.log["niter"] = step
        if verbose:
            print(f"{step:5d}|{error:8e}|")
        return error < tol

    def warn(self, max_iter: int) -> None:
        """Say that the iterations did not converge."""
        last = self.log["err"][-1] if self.log["err"] else math.inf
        say(
            f"the barycenter did not converge: error {last:.3g} after numItermax={max_iter} "
            "iterations: raise numItermax, raise reg or loosen stopThr",
            ConvergenceWarning,
        )
