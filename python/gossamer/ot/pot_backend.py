"""Drop-in functions for users of POT: `from gossamer.ot import pot_backend as ot`.

    ot.sinkhorn(a, b, M, reg)      ot.sinkhorn2(a, b, M, reg)      ot.solve(M, a, b, reg)
    ot.sinkhorn_unbalanced(a, b, M, reg, reg_m)      ot.sinkhorn_unbalanced2(...)

Argument names, order, defaults and return values are POT's. Two things differ. Gossamer chooses the
solver, whatever Sinkhorn variant `method` names, because all variants have the same solution.
`stopThr` bounds the L1 error of both marginals, which is stricter than POT's L2 error of one.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from torch import Tensor

from gossamer.errors import ConvergenceWarning, DTypeError, ProblemError
from gossamer.ot.result import OTResult
from gossamer.ot.solve import solve, solve_sample

__all__ = [
    "sinkhorn",
    "sinkhorn2",
    "sinkhorn_unbalanced",
    "sinkhorn_unbalanced2",
    "solve",
    "solve_sample",
]

_METHODS = (
    "sinkhorn",
    "sinkhorn_log",
    "sinkhorn_stabilized",
    "sinkhorn_epsilon_scaling",
    "sinkhorn_reg_scaling",
    "greenkhorn",
)


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
) -> Any:
    """The plan of entropic transport, as `ot.sinkhorn` returns it.

    Args:
        a: weights [rows]; an empty list is uniform with sum 1.
        b: weights [cols], or [cols, k] for k problems with the same cost matrix.
        M: cost matrix [rows, cols], torch, NumPy or lists.
        reg: regularisation strength > 0.
        method: any of POT's names.
        numItermax: cap on sweeps plus Newton steps.
        stopThr: L1 error of the marginals at which the solver stops.
        verbose: True prints the solver's status and statistics.
        log: True also returns a dictionary.
        warn: True warns if the solver does not converge.
        warmstart: logarithms of POT's scalings (u, v) to start from.

    Returns:
        The plan [rows, cols], or the transport costs [k] for b [cols, k]. With log also a
        dictionary of err, niter, n_iter, status, u, v, log_u and log_v.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.

    Example:
        >>> from gossamer.ot import pot_backend as ot
        >>> ot.sinkhorn([.5, .5], [.5, .5], [[0., 1.], [1., 0.]], 1).round(4).tolist()
        [[0.3655, 0.1345], [0.1345, 0.3655]]
    """
    result = _solve(a, b, M, reg, None, method, numItermax, stopThr, verbose, warn, warmstart)
    plan = _plan_or_costs(result)
    return (plan, _log(result)) if log else plan


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
) -> Any:
    """The transport cost <P, M> of the entropic plan, as `ot.sinkhorn2` returns it.

    Args:
        a: as in `sinkhorn`.
        b: as in `sinkhorn`.
        M: as in `sinkhorn`.
        reg: as in `sinkhorn`.
        method: any of POT's names.
        numItermax: as in `sinkhorn`.
        stopThr: as in `sinkhorn`.
        verbose: as in `sinkhorn`.
        log: as in `sinkhorn`.
        warn: as in `sinkhorn`.
        warmstart: as in `sinkhorn`.

    Returns:
        A number, or [k] for b [cols, k]; with log also the dictionary of `sinkhorn`.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.

    Example:
        >>> from gossamer.ot import pot_backend as ot
        >>> round(float(ot.sinkhorn2([.5, .5], [.5, .5], [[0., 1.], [1., 0.]], 1)), 6)
        0.268941
    """
    result = _solve(a, b, M, reg, None, method, numItermax, stopThr, verbose, warn, warmstart)
    return (result.value_linear, _log(result)) if log else result.value_linear


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
) -> Any:
    """The plan with penalised marginals, as `ot.unbalanced.sinkhorn_unbalanced` returns it.

    Args:
        a: as in `sinkhorn`.
        b: as in `sinkhorn`.
        M: as in `sinkhorn`.
        reg: as in `sinkhorn`.
        reg_m: weight of the marginals' KL penalty, a number or a pair; infinite for an exact
            marginal.
        method: any of POT's names.
        reg_type: "kl" or "entropy".
        c: None; "kl" supports only the reference a b'.
        warmstart: as in `sinkhorn`.
        numItermax: as in `sinkhorn`.
        stopThr: residual of the optimality conditions at which the solver stops.
        verbose: as in `sinkhorn`.
        log: as in `sinkhorn`.

    Returns:
        The plan [rows, cols], or the transport costs [k] for b [cols, k]; with log also the
        dictionary of `sinkhorn`.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.

    Example:
        >>> from gossamer.ot import pot_backend as ot
        >>> ot.sinkhorn_unbalanced([.5, .5], [.5, .5], [[0., 1.], [1., 0.]], 1, 1).round(4).tolist()
        [[0.3221, 0.1185], [0.1185, 0.3221]]
    """
    _only_default_reference(c)
    result = _solve(
        a, b, M, reg, reg_m, method, numItermax, stopThr, verbose, True, warmstart, reg_type
    )
    plan = _plan_or_costs(result)
    return (plan, _log(result)) if log else plan


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
) -> Any:
    """The cost of `sinkhorn_unbalanced`'s plan, as `ot.unbalanced.sinkhorn_unbalanced2` returns it.

    Args:
        a: as in `sinkhorn_unbalanced`.
        b: as in `sinkhorn_unbalanced`.
        M: as in `sinkhorn_unbalanced`.
        reg: as in `sinkhorn_unbalanced`.
        reg_m: as in `sinkhorn_unbalanced`.
        method: any of POT's names.
        reg_type: "kl" or "entropy".
        c: None.
        warmstart: as in `sinkhorn`.
        returnCost: "linear" for <P, M>, "total" for the whole objective.
        numItermax: as in `sinkhorn`.
        stopThr: as in `sinkhorn_unbalanced`.
        verbose: as in `sinkhorn`.
        log: as in `sinkhorn`.

    Returns:
        A number, or [k] for b [cols, k]; with log also the dictionary of `sinkhorn`.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.
    """
    if returnCost not in ("linear", "total"):
        raise ProblemError(f"returnCost is {returnCost!r:.80}; choose linear or total")
    _only_default_reference(c)
    result = _solve(
        a, b, M, reg, reg_m, method, numItermax, stopThr, verbose, True, warmstart, reg_type
    )
    cost = result.value if returnCost == "total" else result.value_linear
    return (cost, _log(result)) if log else cost


def _only_default_reference(c: Any) -> None:
    if c is not None:
        raise ProblemError(
            "c was given; only the default reference a b' is supported: leave it out"
        )


def _solve(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    reg_m: Any,
    method: str,
    max_iter: int,
    tol: float,
    verbose: bool,
    warn: bool,
    warmstart: Any,
    reg_type: str = "KL",
) -> OTResult:
    if method.lower() not in _METHODS:
        raise ProblemError(f"method is {method!r:.80}; choose one of {', '.join(_METHODS)}")
    a, b, M = (_array(values, name) for values, name in ((a, "a"), (b, "b"), (M, "M")))
    start = None
    if warmstart is not None:
        if not isinstance(warmstart, tuple | list) or len(warmstart) != 2:
            raise DTypeError("warmstart is not a pair (log u, log v); give two arrays")
        start = tuple((_array(w, "warmstart") * reg).T for w in warmstart)  # one row per problem
    if b.ndim == 2:  # POT has one column per problem
        b = b.T
        M = M.expand(len(b), *M.shape) if isinstance(M, Tensor) else np.stack([M] * len(b))
    kind = "KL" if reg_type.lower() == "kl" else reg_type
    with warnings.catch_warnings():
        if not warn:
            warnings.simplefilter("ignore", ConvergenceWarning)
        result = solve(
            M,
            a if len(a) else None,
            b if len(b) else None,
            reg,
            kind,
            reg_m,
            max_iter=max_iter,
            tol=tol,
            potentials_init=start,
        )
    if verbose:
        print(f"{result!r}\n{result.log}")
    return result


def _array(values: Any, name: str) -> Any:
    """Convert lists, as POT does; return tensors and arrays unchanged."""
    if isinstance(values, list | tuple):
        return np.asarray(values, dtype=float)
    if not isinstance(values, Tensor | np.ndarray) or values.ndim == 0:
        raise DTypeError(
            f"{name} is a {type(values).__name__}; an array, a tensor or a list is needed"
        )
    return values


def _plan_or_costs(result: OTResult) -> Any:
    """The plan, or the costs if b has several problems, as in POT."""
    return result.plan if isinstance(result.status, str) else result.value_linear


def _log(result: OTResult) -> dict[str, Any]:
    log_u, log_v = result.log_scalings
    return {
        "err": [result.marginal_error],
        "niter": result.iterations,
        "n_iter": result.iterations,
        "status": result.status,
        "log_u": log_u,
        "log_v": log_v,
        "u": np.exp(log_u) if isinstance(log_u, np.ndarray) else log_u.exp(),
        "v": np.exp(log_v) if isinstance(log_v, np.ndarray) else log_v.exp(),
    }
