"""Solvers of transport problems behind one call: Gossamer and its rivals.

A function here takes a problem and a bound on the L1 error of both marginals, and returns a call
that solves it and hands over the whole plan. Each library stops on another norm; what is asked of
it is the loosest value that ensures the bound. What it returns is measured by the bench.
mdot-tnt is not here: its licence is non-commercial.

Loaded by a worker without its package: this file imports nothing of Gossamer at its head.
"""

import os
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

Solve = Callable[[], Any]

# Time is what ends a hopeless run: the bench kills it.
ENDLESS = 10**8
GEOMLOSS_STEPS = 10


class Solver(NamedTuple):
    """One way to solve a transport problem.

    Args:
        function: of this file.
        package: that must be importable; "" for Gossamer itself.
        distribution: its name on PyPI.
    """

    function: str
    package: str = ""
    distribution: str = ""


def gossamer(C: Any, a: Any, b: Any, reg: float, tol: float, method: str = "auto") -> Solve:
    """`gossamer.ot.solve`, with the plan made."""
    (ot, weights), (c,) = _gossamer(a, b), _tensors(C)
    return lambda: ot.solve(c, *weights, reg, method=method, tol=tol).plan.numpy()


def gossamer_sinkhorn(C: Any, a: Any, b: Any, reg: float, tol: float) -> Solve:
    """Our Sinkhorn sweeps alone."""
    (ot, weights), (c,) = _gossamer(a, b), _tensors(C)
    options = {"method": "sinkhorn", "tol": tol, "max_iter": ENDLESS}
    return lambda: ot.solve(c, *weights, reg, **options).plan.numpy()


def gossamer_relaxed(C: Any, a: Any, b: Any, reg: float, tol: float) -> Solve:
    """Over-relaxed sweeps."""
    (ot, weights), (c,) = _gossamer(a, b), _tensors(C)
    options = {"omega": 1.5, "tol": tol, "max_iter": ENDLESS}
    return lambda: ot.sinkhorn(c, *weights, reg, **options).plan.numpy()


def gossamer_newton(C: Any, a: Any, b: Any, reg: float, tol: float) -> Solve:
    """Our annealed sparse Newton method, also where `auto` would choose sweeps."""
    return gossamer(C, a, b, reg, tol, "newton")


def gossamer_published(C: Any, a: Any, b: Any, reg: float, tol: float) -> Solve:
    """Sinkhorn-Newton-Sparse to the letter (Tang et al., ICLR 2024), as Gossamer has it."""
    return gossamer(C, a, b, reg, tol, "published")


def gossamer_points(points: Any, a: Any, b: Any, reg: float, tol: float) -> Solve:
    """`gossamer.ot.solve_sample`: half the squared distances, which are never stored."""
    ot, weights = _gossamer(a, b)
    x, y = (points[0] / np.sqrt(2), points[1] / np.sqrt(2))
    cloud = _tensors(x, y)

    def solve() -> Potentials:
        f, g = ot.solve_sample(*cloud, *weights, reg, tol=tol).potentials
        return Potentials(x, y, f.numpy(), g.numpy(), reg)

    return solve


class Potentials(NamedTuple):
    """An answer without a plan.

    Args:
        x: points [n, d].
        y: points [m, d].
        f: [n]; P_ij = exp((f_i + g_j - |x_i - y_j|^2) / reg).
        g: [m].
        reg: of the entropy.
    """

    x: Any
    y: Any
    f: Any
    g: Any
    reg: float

    def marginals(self) -> tuple[Any, Any]:
        """Sums of the rows and columns, a hundred rows at a time."""
        rows, columns = np.empty(len(self.f)), np.zeros(len(self.g))
        for start in range(0, len(self.f), 100):
            part = slice(start, start + 100)
            cost = ((self.x[part, None] - self.y) ** 2).sum(2)
            plan = np.exp((self.f[part, None] + self.g - cost) / self.reg)
            rows[part] = plan.sum(1)
            columns += plan.sum(0)
        return rows, columns


def pot_sinkhorn(C: Any, a: Any, b: Any, reg: float, tol: float, method: str = "sinkhorn") -> Solve:
    """POT's `ot.sinkhorn`; it stops on the L2 error of the columns, the rows being exact."""
    for backend in ("PYTORCH", "JAX", "CUPY", "TENSORFLOW"):
        os.environ[f"POT_BACKEND_DISABLE_{backend}"] = "1"  # importing them takes seconds
    pot = import_module("ot")
    stop = {"numItermax": ENDLESS, "stopThr": tol / np.sqrt(len(b)), "warn": False}
    return lambda: pot.sinkhorn(a, b, C, reg, method=method, **stop)


def pot_sinkhorn_log(C: Any, a: Any, b: Any, reg: float, tol: float) -> Solve:
    """The same in the log domain."""
    return pot_sinkhorn(C, a, b, reg, tol, "sinkhorn_log")


def regot_ssns(C: Any, a: Any, b: Any, reg: float, tol: float) -> Solve:
    """Safe and sparse Newton (Tang & Qiu, NeurIPS 2024); stops on the gradient's L2 norm."""
    regot = import_module("regot")
    cost = np.asfortranarray(C)
    stop = {"tol": tol / np.sqrt(len(a) + len(b)), "max_iter": 100_000}
    return lambda: regot.sinkhorn_ssns(cost, a, b, reg, **stop).plan


def geomloss(C: Any, a: Any, b: Any, reg: float, tol: float) -> Solve:
    """The `geomloss.ot.solve`; it has no tolerance, its error falls as one over its steps."""
    torch, solvers = import_module("torch"), import_module("geomloss.ot")
    torch.set_num_threads(_threads())
    c, wa, wb = _tensors(C, a, b)
    options = {"reg": reg, "a": wa, "b": wb, "max_iter": GEOMLOSS_STEPS}
    return lambda: solvers.solve(c, **options).plan.numpy()


def ott_jax(C: Any, a: Any, b: Any, reg: float, tol: float) -> Solve:
    """ott-jax' Sinkhorn in the log domain; stops on the L1 error; compiled before the clock."""
    jax = import_module("jax")
    jax.config.update("jax_enable_x64", True)
    arguments = [jax.numpy.asarray(value) for value in (C, a, b, reg)]
    compiled = _compiled_ott(len(a), len(b), tol)
    return lambda: np.asarray(compiled(*arguments))


@lru_cache
def _compiled_ott(n: int, m: int, tol: float) -> Any:
    jax = import_module("jax")
    geometry = import_module("ott.geometry.geometry")
    problems = import_module("ott.problems.linear.linear_problem")
    solvers = import_module("ott.solvers.linear.sinkhorn")

    def run(cost: Any, wa: Any, wb: Any, epsilon: Any) -> Any:
        problem = problems.LinearProblem(geometry.Geometry(cost, epsilon=epsilon), a=wa, b=wb)
        # Its limit also sizes an array of past errors.
        solver = solvers.Sinkhorn(threshold=tol, norm_error=1, max_iterations=1_000_000)
        return solver(problem).matrix

    shapes = [jax.ShapeDtypeStruct(size, np.float64) for size in ((n, m), (n,), (m,), ())]
    return jax.jit(run).lower(*shapes).compile()


def _gossamer(a: Any, b: Any) -> tuple[Any, list[Any]]:
    torch, ot = import_module("torch"), import_module("gossamer.ot")
    torch.set_num_threads(_threads())
    return ot, _tensors(a, b)


def _tensors(*arrays: Any) -> list[Any]:
    torch = import_module("torch")
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


def _threads() -> int:
    return int(os.environ["OMP_NUM_THREADS"])


GOSSAMER, PUBLISHED, LAZY = "gossamer", "gossamer, published method", "gossamer, lazy cost"
POT, POT_LOG, REGOT = "POT sinkhorn", "POT sinkhorn_log", "regot SSNS"
SINKHORN, NEWTON = "gossamer, sinkhorn", "gossamer, newton"
RELAXED = "gossamer, over-relaxed"

SOLVERS: dict[str, Solver] = {
    GOSSAMER: Solver("gossamer"),
    POT: Solver("pot_sinkhorn", "ot", "POT"),
    POT_LOG: Solver("pot_sinkhorn_log", "ot", "POT"),
    REGOT: Solver("regot_ssns", "regot", "regot"),
    "geomloss": Solver("geomloss", "geomloss", "geomloss"),
    "ott-jax": Solver("ott_jax", "ott", "ott-jax"),
    SINKHORN: Solver("gossamer_sinkhorn"),
    RELAXED: Solver("gossamer_relaxed"),
    NEWTON: Solver("gossamer_newton"),
    PUBLISHED: Solver("gossamer_published"),
    LAZY: Solver("gossamer_points"),
}
RIVALS = (POT, POT_LOG, REGOT, "geomloss", "ott-jax")
TRACED = (GOSSAMER, NEWTON, SINKHORN, RELAXED, PUBLISHED, *RIVALS)
