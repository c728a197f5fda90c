"""Entropic problems as POT states them, solved: what the functions of this package share.

    min_P <M, P> + reg sum P log(P / c) + penalties        P = diag(u) (exp(-M / reg) * c) diag(v)

c is 1 (POT's "entropy", and every problem with exact marginals) or a b' (its "kl"). POT's sums
P log(P / c) leave the mass out that a generalised divergence has.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import ConvergenceWarning, DTypeError
from gossamer.ot.pot_backend.arguments import array, weights
from gossamer.ot.result import OTResult
from gossamer.ot.solve import solve, solve_sample

# Methods of POT whose warm start is in units of the cost, not the logarithm of a scaling.
IN_COST_UNITS = ("sinkhorn_stabilized", "sinkhorn_epsilon_scaling")


@dataclass(frozen=True)
class Question:
    """A problem, and how it is to be solved.

    Args:
        a: weights [rows], or None.
        b: weights [cols], [cols, k] for k problems, or None.
        M: cost [rows, cols].
        reg: strength of the entropy.
        reg_m: strengths of the penalties of both marginals, or None for exact ones.
        kl: whether the reference is a b' instead of 1.
        c: another reference [rows, cols], or None.
        max_iter: cap on the iterations.
        tol: error at which the solver stops; 0 takes exactly `max_iter` of POT's sweeps.
        warn: whether it warns if it does not converge.
        grad: "implicit" or "detach".
        points: the points (x [rows, d], y [cols, d]) of a cost that is not stored; M is None.
        metric: their metric.
    """

    a: Any
    b: Any
    M: Any
    reg: Any
    reg_m: tuple[float, float] | None = None
    kl: bool = False
    c: Any = None
    max_iter: int = 1000
    tol: float = 1e-9
    warn: bool = True
    grad: str = "implicit"
    points: tuple[Any, Any] | None = None
    metric: str = ""

    @property
    def several(self) -> bool:
        """Whether b has one column per problem."""
        return self.b is not None and self.b.ndim == 2

    @property
    def turned(self) -> bool:
        """Whether rows and columns change places: POT's sweeps begin with the columns."""
        return self.tol == 0 and self.reg_m is None


def ask(a: Any, b: Any, M: Any, reg: Any, **rest: Any) -> Question:
    """A question about arrays or lists; empty weights are uniform.

    Raises:
        DTypeError: an argument is no array.
    """
    cost = None if M is None else array(M, "M")
    like = rest["points"][0] if cost is None else cost
    return Question(weights(a, "a", like), weights(b, "b", like), cost, reg, **rest)


def answer(question: Question, warmstart: Any = None, *, cost_units: bool = False) -> Answer:
    """Solve a problem, or k of them.

    Args:
        question: the problem.
        warmstart: a pair of start vectors in POT's form, or None: [rows] and [cols], or [rows, k]
            and [cols, k], or a list of k pairs.
        cost_units: whether the start is in units of the cost; else it is log u and log v.

    Raises:
        GossamerError: an argument is out of range; the message names it.
    """
    q = question
    a, b, cost = q.a, q.b, q.M
    start = None if warmstart is None else _start(q, warmstart, cost_units)
    if q.c is not None:
        with np.errstate(divide="ignore"):
            cost = cost - q.reg * _log(array(q.c, "c"))  # no reference mass forbids a pair
    if q.several:
        b = b.T
        cost = (
            cost.expand(len(b), *cost.shape)
            if isinstance(cost, Tensor)
            else np.stack([cost] * len(b))
        )
    places = q.points
    if q.turned:
        a, b = b, a
        cost = None if cost is None else _turn(cost)
        places = None if places is None else places[::-1]
        start = None if start is None else start[::-1]
    how: dict[str, Any] = {
        "reg_type": "KL" if q.kl and q.c is None else "entropy",
        "unbalanced": q.reg_m,
        "method": "sinkhorn" if q.tol == 0 else "auto",
        "max_iter": q.max_iter,
        "tol": q.tol,
        "potentials_init": start,
        "grad": q.grad,
    }
    with warnings.catch_warnings():
        if not q.warn:
            warnings.simplefilter("ignore", ConvergenceWarning)
        if places is None:
            return Answer(q, solve(cost, a, b, q.reg, **how))
        return Answer(q, solve_sample(*places, a, b, q.reg, q.metric, lazy=True, **how))


@dataclass(frozen=True)
class Answer:
    """A solved question, in POT's shapes, units and conventions."""

    question: Question
    result: OTResult

    @property
    def plan(self) -> Any:
        """The plan [rows, cols], or [k, rows, cols]."""
        plan = self.result.plan
        return _turn(plan) if self.question.turned else plan

    @property
    def linear(self) -> Any:
        """The transport cost <M, P>, or [k] of them."""
        if self.question.c is None:
            return self.result.value_linear
        M = self.question.M
        isfinite = torch.isfinite if isinstance(M, Tensor) else np.isfinite
        where = torch.where if isinstance(M, Tensor) else np.where
        return (self.plan * where(isfinite(M), M, 0.0)).sum()

    @property
    def value(self) -> Any:
        """The whole objective in POT's convention: sums P log(P / c) without their masses."""
        q, result = self.question, self.result
        mass_a, mass_b = (
            1.0 if w is None else w.sum(0) if side == "b" else w.sum()
            for side, w in (("a", q.a), ("b", q.b))
        )
        if q.reg_m is None:
            return result.value + q.reg * mass_a * ((1 - mass_b) if q.kl else 1)
        plan = result.plan
        mass = plan.sum((-1, -2))
        reference = mass_a * mass_b if q.kl and q.c is None else 0.0
        value = result.value + q.reg * (mass - reference)
        for rho, own in zip(q.reg_m, (mass_a, mass_b), strict=True):
            if rho != math.inf:
                value = value + rho * (mass - own)
        return value

    @property
    def log_scalings(self) -> tuple[Any, Any]:
        """(log u, log v), [rows] and [cols], or [rows, k] and [cols, k]; see the file's head."""
        u, v = self.result.log_scalings
        if self.question.turned:
            u, v = v, u
        if self.question.kl and self.question.reg_m is not None and self.question.c is None:
            # Against a b': without mass the reference is 0, whatever the scaling.
            u, v = (_without(x, w) for x, w in ((u, self.question.a), (v, self.question.b)))
        return (u.T, v.T) if self.question.several else (u, v)

    @property
    def log(self) -> dict[str, Any]:
        """What POT's solvers write into their logs, under each of their names."""
        log_u, log_v = self.log_scalings
        reg = self.question.reg
        u, v = ((x.exp() if isinstance(x, Tensor) else np.exp(x)) for x in (log_u, log_v))
        iterations = self.result.iterations
        return {
            "err": self.result.errors,
            "niter": iterations,
            "n_iter": iterations,
            "status": self.result.status,
            "u": u,
            "v": v,
            "log_u": log_u,
            "log_v": log_v,
            "logu": log_u,
            "logv": log_v,
            "alpha": reg * log_u,
            "beta": reg * log_v,
        }


def _start(q: Question, warmstart: Any, cost_units: bool) -> tuple[Any, Any]:
    """The potentials (f, g) to start from, one row per problem."""
    if not isinstance(warmstart, tuple | list) or len(warmstart) == 0:
        raise DTypeError("warmstart is not a pair (log u, log v); give two arrays")
    if q.several and isinstance(warmstart[0], tuple | list):
        starts = [_start(Question(q.a, None, q.M, q.reg, q.reg_m, q.kl), pair, cost_units)
                  for pair in warmstart]  # fmt: skip
        stack = torch.stack if isinstance(starts[0][0], Tensor) else np.stack
        f, g = (stack([start[side] for start in starts]) for side in (0, 1))
        return f, g
    if len(warmstart) != 2:
        raise DTypeError("warmstart is not a pair (log u, log v); give two arrays")
    ready = []
    for given, own in zip(warmstart, (q.a, q.b), strict=True):
        w = array(given, "warmstart")
        potential = _number(w if cost_units else w * q.reg)
        if w.ndim == 2:
            potential = potential.T
        if q.kl and q.reg_m is not None and q.c is None:
            size = potential.shape[-1]
            log = -math.log(size) if own is None else _finite_log(own)
            potential = potential + q.reg * log
        ready.append(potential)
    return ready[0], ready[1]


def _number(potential: Any) -> Any:
    """The potential with 0 where a log says minus infinity: a row without mass."""
    where = torch.where if isinstance(potential, Tensor) else np.where
    return where(potential == -math.inf, 0.0, potential)


def _log(x: Any) -> Any:
    return x.log() if isinstance(x, Tensor) else np.log(x)


def _finite_log(w: Any) -> Any:
    """Log w, and 0 where w is 0."""
    where = torch.where if isinstance(w, Tensor) else np.where
    return _log(where(w > 0, w, 1.0))


def _without(log_scaling: Any, w: Any) -> Any:
    """The scaling against a reference of these weights; 0 where they are 0."""
    if w is None:
        return log_scaling + math.log(log_scaling.shape[-1])
    where = torch.where if isinstance(w, Tensor) else np.where
    return where(w > 0, log_scaling, 0.0) - _finite_log(w)


def _turn(x: Any) -> Any:
    return x.mT if isinstance(x, Tensor) else np.swapaxes(x, -1, -2)
