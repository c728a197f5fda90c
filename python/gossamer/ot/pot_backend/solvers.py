"""`ot.solve` and `ot.solve_sample`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import NotOffered, ProblemError
from gossamer.ot.plans import pairwise
from gossamer.ot.pot_backend.arguments import (
    GEOMLOSS,
    array,
    chosen,
    pair,
    say,
    weights,
)
from gossamer.ot.pot_backend.entropic import Answer, Question, answer, ask
from gossamer.ot.pot_backend.exact import solve_exact
from gossamer.ot.pot_backend.result import LazyPlan, PotResult
from gossamer.ot.problem import METRICS

__all__ = ["solve", "solve_sample"]

METHODS = ("sinkhorn", "sinkhorn_log", "mm", "lbfgsb")
# POT's other solvers of points, which do not solve the problem of `solve`.
OTHER_PROBLEMS = (
    "1d", "gaussian", "gaussian_hd", "lowrank", "nystroem", "factored", "sliced", "max_sliced",
    "bsp",
)  # fmt: skip
GRADS = ("autodiff", "implicit", "last_step", "envelope", "detach")


def solve(
    M: Any,
    a: Any = None,
    b: Any = None,
    reg: Any = None,
    c: Any = None,
    reg_type: Any = "KL",
    unbalanced: Any = None,
    unbalanced_type: str = "KL",
    method: str | None = None,
    n_threads: int = 1,
    max_iter: int | None = None,
    plan_init: Any = None,
    potentials_init: Any = None,
    tol: float | None = None,
    verbose: bool = False,
    grad: str = "autodiff",
) -> PotResult:
    """The solution of a transport problem, as `ot.solve` returns it.

    Args:
        M: cost matrix [rows, cols], torch, NumPy or lists; an infinite cost forbids a pair.
        a: weights [rows]; None is uniform with sum 1.
        b: weights [cols]; None is uniform with sum 1.
        reg: regularisation strength; None or 0 is exact transport, by SciPy if it is installed.
        c: reference measure [rows, cols] of "KL" with penalised marginals; None is a b'.
        reg_type: "KL" or "entropy".
        unbalanced: None for exact marginals, or the weight of the marginals' penalty: a number, or
            an array, list or tuple of one or two; it needs reg.
        unbalanced_type: "KL".
        method: any of POT's names; Gossamer chooses the solver.
        n_threads: ignored; torch.set_num_threads says how many threads there are.
        max_iter: cap on the iterations; None is 1000.
        plan_init: ignored, as in POT's Sinkhorn solvers.
        potentials_init: a pair (log u, log v) to start from, such as another result's `potentials`.
        tol: error at which the solver stops; None is 1e-9, and 0 takes exactly max_iter sweeps.
        verbose: True prints the solver's status and statistics.
        grad: "autodiff" and "last_step": all fields are differentiable, by implicit
            differentiation; "envelope": `value` alone; "detach": none.

    Returns:
        The solution; `potentials` are (log u, log v), and those of the cost without reg.

    Raises:
        NotOffered: POT solves the problem, Gossamer does not; also a NotImplementedError.
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.

    Example:
        >>> import numpy as np
        >>> from gossamer.ot import pot_backend as ot
        >>> result = ot.solve(np.array([[0.0, 1.0], [1.0, 0.0]]), reg=1.0)
        >>> result.plan.round(4).tolist(), round(float(result.value), 4)
        ([[0.3655, 0.1345], [0.1345, 0.3655]], 0.3799)
    """
    if method is not None:
        chosen(method, METHODS)
    if reg is None or (isinstance(reg, int | float) and reg == 0):
        if unbalanced is not None:
            raise NotOffered(
                "unbalanced was given without reg; POT has solvers for that, Gossamer only for an "
                "entropy: give reg"
            )
        cost = array(M, "M")
        return solve_exact(cost, weights(a, "a", cost), weights(b, "b", cost), max_iter)
    question, detached = _question(
        M, a, b, reg=reg, c=c, reg_type=reg_type, unbalanced=unbalanced,
        unbalanced_type=unbalanced_type, max_iter=max_iter, tol=tol, grad=grad,
    )  # fmt: skip
    found = answer(question, potentials_init)
    if verbose:
        print(f"{found.result!r}\n{found.result.log}")
    return _result(found, detached)


def solve_sample(
    X_a: Any,
    X_b: Any,
    a: Any = None,
    b: Any = None,
    metric: str = "sqeuclidean",
    reg: Any = None,
    c: Any = None,
    reg_type: Any = "KL",
    unbalanced: Any = None,
    unbalanced_type: str = "KL",
    lazy: bool = False,
    batch_size: int | None = None,
    method: str | None = None,
    n_threads: int = 1,
    max_iter: int | None = None,
    plan_init: Any = None,
    rank: int = 100,
    scaling: float = 0.95,
    potentials_init: Any = None,
    X_init: Any = None,
    tol: float | None = None,
    verbose: bool = False,
    grad: str = "autodiff",
    random_state: Any = None,
    debias: Any = False,
    n_projections: int = 50,
    projections: Any = None,
    scaler: Any = None,
) -> PotResult:
    """The solution of the problem of points, as `ot.solve_sample` returns it.

    Args:
        X_a: points [rows, d].
        X_b: points [cols, d].
        a: weights of X_a, as in `solve`.
        b: weights of X_b.
        metric: "sqeuclidean", "euclidean", "cityblock" or "cosine".
        reg: as in `solve`, and so are the arguments up to `unbalanced_type`.
        c: reference measure.
        reg_type: "KL" or "entropy".
        unbalanced: weight of the marginals' penalty.
        unbalanced_type: "KL".
        lazy: True never stores the cost matrix, if reg is given; `lazy_plan` then holds the plan.
        batch_size: ignored.
        method: any of `solve`'s names or geomloss's; Gossamer chooses the solver.
        n_threads: as in `solve`, and so are the arguments that are not named below.
        max_iter: cap on the iterations.
        plan_init: ignored.
        rank: ignored.
        scaling: ignored.
        potentials_init: a start.
        X_init: ignored.
        tol: error at which the solver stops.
        verbose: True prints statistics.
        grad: which fields are differentiable.
        random_state: ignored.
        debias: True makes `value` and `value_linear` those of the Sinkhorn divergence.
        n_projections: ignored.
        projections: ignored.
        scaler: None.

    Returns:
        The solution, as `solve` returns it.

    Raises:
        NotOffered: POT solves the problem, Gossamer does not; also a NotImplementedError.
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.

    Example:
        >>> import numpy as np
        >>> from gossamer.ot import pot_backend as ot
        >>> x = np.array([[0.0], [1.0]])
        >>> round(float(ot.solve_sample(x, x + 0.5, reg=0.01).value_linear), 4)
        0.25
    """
    if method is not None and chosen(method, METHODS + GEOMLOSS + OTHER_PROBLEMS) in OTHER_PROBLEMS:
        raise NotOffered(
            f"method is {method!r:.80}, another problem than transport with an entropy; use POT"
        )
    if scaler is not None or debias not in (True, False):
        raise NotOffered("scaler and debias='split' are not offered; scale or split the points")
    points = [array(x, name) for x, name in ((X_a, "X_a"), (X_b, "X_b"))]
    name = str(metric).lower()
    if name not in METRICS:
        raise NotOffered(
            f"metric is {metric!r:.80}; choose one of {', '.join(METRICS)}, or compute the cost "
            "matrix and use solve"
        )
    own = None if method is None or method.lower() in GEOMLOSS else method
    options: dict[str, Any] = {
        "reg": reg, "c": c, "reg_type": reg_type, "unbalanced": unbalanced,
        "unbalanced_type": unbalanced_type, "method": own, "max_iter": max_iter,
        "plan_init": plan_init, "potentials_init": potentials_init, "tol": tol,
        "verbose": verbose, "grad": grad,
    }  # fmt: skip
    if debias:
        within = [
            _of_points((x, x), w, w, name, False, options | {"potentials_init": None})
            for x, w in zip(points, (a, b), strict=True)
        ]
        between = _of_points((points[0], points[1]), a, b, name, lazy, options)
        value, linear = (
            getattr(between, f) - 0.5 * (getattr(within[0], f) + getattr(within[1], f))
            for f in ("value", "value_linear")
        )
        log = {"res_aa": within[0], "res_bb": within[1], "res_ab": between}
        return replace(between, value=value, value_linear=linear, log=log)
    lazily = lazy or (method is not None and method.lower() in GEOMLOSS)
    return _of_points((points[0], points[1]), a, b, name, lazily, options)


def _of_points(
    points: tuple[Any, Any], a: Any, b: Any, metric: str, lazy: bool, options: dict[str, Any]
) -> PotResult:
    """Solve the problem of points; a lazy one keeps its cost unstored if it has an entropy."""
    if not lazy or not options["reg"] or options["c"] is not None:
        return solve(cost_of(*points, metric), a, b, **options)
    question, detached = _question(None, a, b, points=points, metric=METRICS[metric], **options)
    found = answer(question, options["potentials_init"])
    plan = LazyPlan(*points, *found.log_scalings, metric, options["reg"])
    return replace(_result(found, detached), lazy_plan=plan)


def cost_of(x: Any, y: Any, metric: str) -> Any:
    """The cost matrix [rows, cols] of points in their library and dtype."""
    places = (torch.as_tensor(x).double(), torch.as_tensor(y).double())
    cost = pairwise(*places, METRICS[metric])
    return cost.to(x.dtype) if isinstance(x, Tensor) else cost.numpy().astype(x.dtype)


def _question(
    M: Any,
    a: Any,
    b: Any,
    *,
    reg: Any,
    c: Any,
    reg_type: Any,
    unbalanced: Any,
    unbalanced_type: str,
    max_iter: int | None,
    tol: float | None,
    grad: str,
    points: Any = None,
    metric: str = "",
    **ignored: Any,
) -> tuple[Question, bool]:
    """The question of a call with an entropy, and whether `value` alone is differentiable."""
    if grad not in GRADS:
        raise ProblemError(f"grad is {grad!r:.80}; choose one of {', '.join(GRADS)}")
    kind, penalty = str(reg_type).lower(), str(unbalanced_type).lower()
    if kind not in ("kl", "entropy"):
        raise NotOffered(
            f"reg_type is {reg_type!r:.80}; Gossamer solves KL and entropy (for a sparse plan see "
            "gossamer.ot.sparsity_constrained)"
        )
    if unbalanced is not None and penalty != "kl":
        raise NotOffered(f"unbalanced_type is {unbalanced_type!r:.80}; Gossamer solves KL")
    if c is not None and (unbalanced is None or kind != "kl"):
        say("c was given, which only KL with penalised marginals uses, as in POT")
        c = None
    question = ask(
        a, b, M, reg, kl=kind == "kl", c=c, points=points, metric=metric,
        reg_m=None if unbalanced is None else pair(unbalanced, "unbalanced"),
        max_iter=1000 if max_iter is None else max_iter, tol=1e-9 if tol is None else tol,
        grad="detach" if grad == "detach" else "implicit",
    )  # fmt: skip
    return question, grad == "envelope"


def _result(found: Answer, detached: bool) -> PotResult:
    def out(x: Any) -> Any:
        return x.detach() if detached and isinstance(x, Tensor) else x

    # POT's general solver, which solves this one case, has the masses in its divergences.
    general = found.question.reg_m is not None and not found.question.kl
    value = found.result.value if general else found.value
    if found.question.grad == "detach" and isinstance(value, Tensor):
        value = value.detach()  # of the masses in it
    return PotResult(
        value,
        out(found.linear),
        lambda: out(found.plan),
        lambda: tuple(map(out, found.log_scalings)),
        found.result.status,
        found.log,
    )
