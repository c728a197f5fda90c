"""`ot.sinkhorn` and `ot.sinkhorn2`."""

from __future__ import annotations

from typing import Any

from gossamer.ot.pot_backend.arguments import check_tuning, chosen
from gossamer.ot.pot_backend.entropic import IN_COST_UNITS, Answer, answer, ask

METHODS = (
    "sinkhorn",
    "sinkhorn_log",
    "sinkhorn_stabilized",
    "sinkhorn_epsilon_scaling",
    "greenkhorn",
)
OF_A_COST = METHODS[:3]  # what sinkhorn2 takes


def sinkhorn(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    method: str = "sinkhorn",
    numItermax: int = 1000,
    stopThr: float = 1e-9,
    verbose: bool = False,
    log: bool = False,
    warn: bool = True,
    warmstart: Any = None,
    **kwargs: Any,
) -> Any:
    """The plan of entropic transport, as `ot.sinkhorn` returns it.

    Args:
        a: weights [rows]; an empty list is uniform with sum 1.
        b: weights [cols], or [cols, k] for k problems with the same cost matrix.
        M: cost matrix [rows, cols], torch, NumPy or lists; an infinite cost forbids a pair.
        reg: regularisation strength > 0.
        method: any of POT's names; all have the same solution, and Gossamer chooses the solver.
        numItermax: cap on sweeps plus Newton steps.
        stopThr: L1 error of the marginals at which the solver stops; 0 takes exactly numItermax
            sweeps.
        verbose: True prints the solver's status and statistics.
        log: True also returns a dictionary.
        warn: True warns if the solver does not converge.
        warmstart: a start: the logarithms of POT's scalings (u, v); for "sinkhorn_stabilized" and
            "sinkhorn_epsilon_scaling" the potentials (alpha, beta) in units of the cost. For
            several problems the arrays are [rows, k] and [cols, k].
        kwargs: tau, print_period, epsilon0 and numInnerItermax; they change no solution.

    Returns:
        The plan [rows, cols], or the transport costs [k] for b [cols, k]. With log also a
        dictionary; among others err (a history of the error), niter, u, v, log_u, log_v, and
        warmstart, a start for the same method.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.

    Example:
        >>> from gossamer.ot import pot_backend as ot
        >>> ot.sinkhorn([.5, .5], [.5, .5], [[0., 1.], [1., 0.]], 1).round(4).tolist()
        [[0.3655, 0.1345], [0.1345, 0.3655]]
    """
    name = chosen(method, METHODS)
    found = _solve(a, b, M, reg, name, numItermax, stopThr, verbose, warn, warmstart, kwargs)
    plan = found.linear if found.question.several else found.plan
    return (plan, _log(found, name)) if log else plan


def sinkhorn2(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    method: str = "sinkhorn",
    numItermax: int = 1000,
    stopThr: float = 1e-9,
    verbose: bool = False,
    log: bool = False,
    warn: bool = False,
    warmstart: Any = None,
    **kwargs: Any,
) -> Any:
    """The transport cost <P, M> of the entropic plan, as `ot.sinkhorn2` returns it.

    Args:
        a: as in `sinkhorn`, and so are the other arguments.
        b: weights of the columns.
        M: cost matrix.
        reg: regularisation strength.
        method: "sinkhorn", "sinkhorn_log" or "sinkhorn_stabilized".
        numItermax: cap on the iterations.
        stopThr: error at which the solver stops.
        verbose: True prints statistics.
        log: True also returns a dictionary.
        warn: True warns if the solver does not converge.
        warmstart: a start.
        kwargs: options that change no solution.

    Returns:
        A number, or [k] for b [cols, k]; with log also the dictionary of `sinkhorn`.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.

    Example:
        >>> from gossamer.ot import pot_backend as ot
        >>> round(float(ot.sinkhorn2([.5, .5], [.5, .5], [[0., 1.], [1., 0.]], 1)), 6)
        0.268941
    """
    name = chosen(method, OF_A_COST)
    found = _solve(a, b, M, reg, name, numItermax, stopThr, verbose, warn, warmstart, kwargs)
    return (found.linear, _log(found, name)) if log else found.linear


def _solve(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    method: str,
    max_iter: int,
    tol: float,
    verbose: bool,
    warn: bool,
    warmstart: Any,
    tuning: dict[str, Any],
) -> Answer:
    check_tuning(tuning)
    question = ask(a, b, M, reg, max_iter=max_iter, tol=tol, warn=warn)
    found = answer(question, warmstart, cost_units=method in IN_COST_UNITS)
    if verbose:
        print(f"{found.result!r}\n{found.result.log}")
    return found


def _log(found: Answer, method: str) -> dict[str, Any]:
    log = found.log
    names = ("alpha", "beta") if method in IN_COST_UNITS else ("log_u", "log_v")
    return log | {"warmstart": tuple(log[name] for name in names)}
