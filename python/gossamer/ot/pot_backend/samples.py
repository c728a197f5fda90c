"""`ot.bregman.empirical_sinkhorn`, `empirical_sinkhorn2` and `empirical_sinkhorn_divergence`."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from gossamer.errors import NotOffered, ProblemError
from gossamer.ot.pot_backend.arguments import array, check_tuning
from gossamer.ot.pot_backend.entropic import Answer, answer, ask
from gossamer.ot.pot_backend.result import LazyPlan
from gossamer.ot.pot_backend.solvers import cost_of
from gossamer.ot.pot_backend.sweeps import sinkhorn, sinkhorn2
from gossamer.ot.problem import METRICS


def empirical_sinkhorn(
    X_s: Any,
    X_t: Any,
    reg: float,
    a: Any = None,
    b: Any = None,
    metric: str = "sqeuclidean",
    numIterMax: int = 10000,
    stopThr: float = 1e-9,
    isLazy: bool = False,
    batchSize: Any = 100,
    verbose: bool = False,
    log: bool = False,
    warn: bool = True,
    warmstart: Any = None,
    **kwargs: Any,
) -> Any:
    """The plan between points, as `ot.bregman.empirical_sinkhorn` returns it.

    Args:
        X_s: points [rows, d].
        X_t: points [cols, d].
        reg: regularisation strength > 0 in the unit of the metric.
        a: weights of X_s; None is uniform with sum 1.
        b: weights of X_t.
        metric: "sqeuclidean", "euclidean", "cityblock" or "cosine".
        numIterMax: cap on the iterations.
        stopThr: L1 error of the marginals at which the solver stops.
        isLazy: True never stores the cost matrix.
        batchSize: a whole number, or a pair of them; it changes nothing.
        verbose: True prints the solver's status and statistics.
        log: True also returns a dictionary.
        warn: True warns if the solver does not converge.
        warmstart: the pair (log u, log v) to start from.
        kwargs: `method` and options that change no solution.

    Returns:
        The plan [rows, cols]; if lazy, log u [rows] and log v [cols]. With log also the dictionary
        of `sinkhorn`; if lazy, its u and v are log u and log v, as in POT, and it has lazy_plan.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.
    """
    x, y, name = _points(X_s, X_t, metric)
    if not isLazy:
        return sinkhorn(
            _own(a), _own(b), cost_of(x, y, name), reg, numItermax=numIterMax, stopThr=stopThr,
            verbose=verbose, log=log, warn=warn, warmstart=warmstart, **kwargs,
        )  # fmt: skip
    check_tuning({key: value for key, value in kwargs.items() if key != "method"})
    found = _lazily(x, y, name, reg, a, b, numIterMax, stopThr, batchSize, verbose, warn, warmstart)
    log_u, log_v = found.log_scalings
    if not log:
        return log_u, log_v
    return log_u, log_v, _lazy_log(found, x, y, name)


def empirical_sinkhorn2(
    X_s: Any,
    X_t: Any,
    reg: float,
    a: Any = None,
    b: Any = None,
    metric: str = "sqeuclidean",
    numIterMax: int = 10000,
    stopThr: float = 1e-9,
    isLazy: bool = False,
    batchSize: Any = 100,
    verbose: bool = False,
    log: bool = False,
    warn: bool = True,
    warmstart: Any = None,
    **kwargs: Any,
) -> Any:
    """The transport cost between points, as `ot.bregman.empirical_sinkhorn2` returns it.

    Args:
        X_s: as in `empirical_sinkhorn`, and so are the other arguments.
        X_t: points.
        reg: regularisation strength.
        a: weights of X_s.
        b: weights of X_t.
        metric: metric of the cost.
        numIterMax: cap on the iterations.
        stopThr: error at which the solver stops.
        isLazy: True never stores the cost matrix.
        batchSize: changes nothing.
        verbose: True prints statistics.
        log: True also returns a dictionary.
        warn: True warns if the solver does not converge.
        warmstart: a start.
        kwargs: `method` and options that change no solution.

    Returns:
        A number; with log also the dictionary of `empirical_sinkhorn`.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.
    """
    x, y, name = _points(X_s, X_t, metric)
    if not isLazy:
        return sinkhorn2(
            _own(a), _own(b), cost_of(x, y, name), reg, numItermax=numIterMax, stopThr=stopThr,
            verbose=verbose, log=log, warn=warn, warmstart=warmstart, **kwargs,
        )  # fmt: skip
    check_tuning({key: value for key, value in kwargs.items() if key != "method"})
    found = _lazily(x, y, name, reg, a, b, numIterMax, stopThr, batchSize, verbose, warn, warmstart)
    return (found.linear, _lazy_log(found, x, y, name)) if log else found.linear


def empirical_sinkhorn_divergence(
    X_s: Any,
    X_t: Any,
    reg: float,
    a: Any = None,
    b: Any = None,
    metric: str = "sqeuclidean",
    numIterMax: int = 10000,
    stopThr: float = 1e-9,
    verbose: bool = False,
    log: bool = False,
    warn: bool = True,
    warmstart: Any = None,
    **kwargs: Any,
) -> Any:
    """The divergence of costs, as `ot.bregman.empirical_sinkhorn_divergence` returns it.

    It is max(0, W(X_s, X_t) - (W(X_s, X_s) + W(X_t, X_t)) / 2) of the costs W = <P, M>.
    `gossamer.ot.loss` is that of the whole objectives, which is positive by itself.

    Args:
        X_s: as in `empirical_sinkhorn`, and so are the other arguments.
        X_t: points.
        reg: regularisation strength.
        a: weights of X_s.
        b: weights of X_t.
        metric: metric of the cost.
        numIterMax: cap on the iterations.
        stopThr: error at which the solver stops.
        verbose: True prints statistics.
        log: True also returns a dictionary.
        warn: True warns if the solver does not converge.
        warmstart: a start for the cost between the clouds; the others start from u twice, v twice.
        kwargs: `isLazy` and `batchSize` as well.

    Returns:
        A number; with log also a dictionary of the three costs and their logs.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.
    """
    starts = [None] * 3 if warmstart is None else [
        tuple(warmstart), (warmstart[0],) * 2, (warmstart[1],) * 2
    ]  # fmt: skip
    sides = ((X_s, X_t, a, b), (X_s, X_s, a, a), (X_t, X_t, b, b))
    found = [
        empirical_sinkhorn2(
            x, y, reg, wx, wy, metric=metric, numIterMax=numIterMax, stopThr=stopThr,
            verbose=verbose, log=True, warn=warn, warmstart=start, **kwargs,
        )
        for (x, y, wx, wy), start in zip(sides, starts, strict=True)
    ]  # fmt: skip
    (between, _), (first, _), (second, _) = found
    divergence = between - 0.5 * (first + second)
    divergence = divergence.clamp(min=0) if isinstance(divergence, Tensor) else max(0, divergence)
    if not log:
        return divergence
    names = ("ab", "a", "b")
    costs = {f"sinkhorn_loss_{n}": cost for n, (cost, _) in zip(names, found, strict=True)}
    return divergence, costs | {
        f"log_sinkhorn_{n}": own for n, (_, own) in zip(names, found, strict=True)
    }


def _points(X_s: Any, X_t: Any, metric: str) -> tuple[Any, Any, str]:
    name = str(metric).lower()
    if name not in METRICS:
        raise NotOffered(
            f"metric is {metric!r:.80}; choose one of {', '.join(METRICS)}, or compute the cost "
            "matrix and use sinkhorn"
        )
    return array(X_s, "X_s"), array(X_t, "X_t"), name


def _own(w: Any) -> Any:
    return [] if w is None else w


def _lazily(
    x: Any,
    y: Any,
    metric: str,
    reg: float,
    a: Any,
    b: Any,
    max_iter: int,
    tol: float,
    batch: Any,
    verbose: bool,
    warn: bool,
    warmstart: Any,
) -> Answer:
    sizes = batch if isinstance(batch, tuple) and len(batch) == 2 else (batch,)
    if not all(isinstance(size, int | np.integer) and size >= 1 for size in sizes):
        raise ProblemError(f"batchSize is {batch!r:.80}; a whole number or a pair is needed")
    question = ask(
        a, b, None, reg, max_iter=max_iter, tol=tol, warn=warn, points=(x, y),
        metric=METRICS[metric],
    )  # fmt: skip
    found = answer(question, warmstart)
    if verbose:
        print(f"{found.result!r}\n{found.result.log}")
    return found


def _lazy_log(found: Answer, x: Any, y: Any, metric: str) -> dict[str, Any]:
    log_u, log_v = found.log_scalings
    plan = LazyPlan(x, y, log_u, log_v, metric, found.question.reg)
    return found.log | {"u": log_u, "v": log_v, "warmstart": (log_u, log_v), "lazy_plan": plan}
