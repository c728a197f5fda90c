"""POT's namespace `ot.unbalanced`: `sinkhorn_unbalanced`, `sinkhorn_unbalanced2`, barycenters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gossamer.errors import ProblemError
from gossamer.ot.pot_backend.arguments import check_tuning, chosen, pair, say
from gossamer.ot.pot_backend.barycenters import barycenter_unbalanced
from gossamer.ot.pot_backend.entropic import Answer, answer, ask

__all__ = ["barycenter_unbalanced", "sinkhorn_unbalanced", "sinkhorn_unbalanced2"]

METHODS = (
    "sinkhorn",
    "sinkhorn_stabilized",
    "sinkhorn_translation_invariant",
    "sinkhorn_reg_scaling",
)


def sinkhorn_unbalanced(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    reg_m: Any,
    method: str = "sinkhorn",
    reg_type: str = "kl",
    c: Any = None,
    warmstart: Any = None,
    numItermax: int = 1000,
    stopThr: float = 1e-6,
    verbose: bool = False,
    log: bool = False,
    **kwargs: Any,
) -> Any:
    """The plan with penalised marginals, as `ot.unbalanced.sinkhorn_unbalanced` returns it.

    Args:
        a: weights [rows]; an empty list is uniform with sum 1.
        b: weights [cols], or [cols, k] for k problems with the same cost matrix; those are solved
            with reg_type "entropy", as in POT.
        M: cost matrix [rows, cols]; an infinite cost forbids a pair.
        reg: regularisation strength > 0.
        reg_m: weight of the marginals' KL penalty: a number, or an array, list or tuple of one or
            two; infinite for an exact marginal.
        method: any of POT's names.
        reg_type: "kl" or "entropy".
        c: reference measure [rows, cols] of "kl"; None is a b'.
        warmstart: the pair (log u, log v) to start from.
        numItermax: cap on sweeps plus Newton steps.
        stopThr: residual of the optimality conditions at which the solver stops; 0 takes exactly
            numItermax sweeps.
        verbose: True prints the solver's status and statistics.
        log: True also returns a dictionary.
        kwargs: tau and print_period; they change no solution.

    Returns:
        The plan [rows, cols], or the transport costs [k] for b [cols, k]. With log also a
        dictionary; among others err (a history of the error), logu and logv of
        P = diag(u) (exp(-M / reg) * c) diag(v), and for one problem cost and total_cost.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.

    Example:
        >>> from gossamer.ot import pot_backend as ot
        >>> ot.sinkhorn_unbalanced([.5, .5], [.5, .5], [[0., 1.], [1., 0.]], 1, 1).round(4).tolist()
        [[0.3221, 0.1185], [0.1185, 0.3221]]
    """
    found = _solve(
        a, b, M, reg, reg_m, method, reg_type, c, warmstart, numItermax, stopThr, verbose, kwargs
    )
    plan = found.linear if found.question.several else found.plan
    return (plan, _log(found)) if log else plan


def sinkhorn_unbalanced2(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    reg_m: Any,
    method: str = "sinkhorn",
    reg_type: str = "kl",
    c: Any = None,
    warmstart: Any = None,
    returnCost: str = "linear",
    numItermax: int = 1000,
    stopThr: float = 1e-6,
    verbose: bool = False,
    log: bool = False,
    **kwargs: Any,
) -> Any:
    """The cost of `sinkhorn_unbalanced`'s plan, as `ot.unbalanced.sinkhorn_unbalanced2` returns it.

    Args:
        a: as in `sinkhorn_unbalanced`, and so are the other arguments.
        b: weights of the columns.
        M: cost matrix.
        reg: regularisation strength.
        reg_m: weight of the marginals' penalty.
        method: any of POT's names.
        reg_type: "kl" or "entropy".
        c: reference measure.
        warmstart: a start.
        returnCost: "linear" for <P, M>, "total" for the whole objective (of one problem).
        numItermax: cap on the iterations.
        stopThr: error at which the solver stops.
        verbose: True prints statistics.
        log: True also returns a dictionary.
        kwargs: options that change no solution.

    Returns:
        A number, or [k] for b [cols, k]; with log also the dictionary of `sinkhorn_unbalanced`.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.
    """
    if returnCost not in ("linear", "total"):
        raise ProblemError(f"returnCost is {returnCost!r:.80}; choose linear or total")
    found = _solve(
        a, b, M, reg, reg_m, method, reg_type, c, warmstart, numItermax, stopThr, verbose, kwargs
    )
    cost = found.value if returnCost == "total" else found.linear
    return (cost, _log(found)) if log else cost


def _solve(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    reg_m: Any,
    method: str,
    reg_type: str,
    c: Any,
    warmstart: Any,
    max_iter: int,
    tol: float,
    verbose: bool,
    tuning: dict[str, Any],
) -> Answer:
    check_tuning(tuning)
    if chosen(method, METHODS) == "sinkhorn_reg_scaling":
        say("method sinkhorn_reg_scaling is not implemented; Gossamer's solver is used")
    kind = str(reg_type).lower()
    if kind not in ("kl", "entropy"):
        raise ProblemError(f"reg_type is {reg_type!r:.80}; choose kl or entropy")
    question = ask(a, b, M, reg, reg_m=pair(reg_m, "reg_m"), max_iter=max_iter, tol=tol)
    if kind == "kl" and question.several:
        say("reg_type kl of several problems is solved as entropy, as in POT")
    elif kind == "kl":
        question = replace(question, kl=True, c=c)
    elif c is not None:
        say("c was given with reg_type entropy, which does not use it, as in POT")
    found = answer(question, warmstart)
    if verbose:
        print(f"{found.result!r}\n{found.result.log}")
    return found


def _log(found: Answer) -> dict[str, Any]:
    log = found.log
    log["warmstart"] = (log["logu"], log["logv"])
    if not found.question.several:
        log |= {"cost": found.linear, "total_cost": found.value}
    return log
