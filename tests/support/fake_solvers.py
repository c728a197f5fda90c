"""Solvers for the tests of the transport bench, run in its workers."""

import os
import signal
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Solver = Callable[[], Array]


def right(C: Array, a: Array, b: Array, reg: float, tol: float) -> Solver:
    """Sinkhorn sweeps until both marginals are right."""

    def solve() -> Array:
        K = np.exp(-C / reg)
        u, v = np.ones_like(a), np.ones_like(b)
        for _ in range(100_000):
            v = b / (K.T @ u)
            u = a / (K @ v)
            plan: Array = u[:, None] * K * v
            if np.abs(plan.sum(0) - b).sum() < tol / 2:
                break
        return plan

    return solve


def slower(C: Array, a: Array, b: Array, reg: float, tol: float) -> Solver:
    """Right, after a pause."""
    solve = right(C, a, b, reg, tol)

    def later() -> Array:
        time.sleep(0.05)
        return solve()

    return later


def careless(C: Array, a: Array, b: Array, reg: float, tol: float) -> Solver:
    """Very fast, and a little wrong."""
    plan = np.outer(a, b)
    plan[0, 0] += 1e-8
    return lambda: plan


def nan(C: Array, a: Array, b: Array, reg: float, tol: float) -> Solver:
    """Very fast, and no number."""
    return lambda: np.full_like(C, np.nan)


def negative(C: Array, a: Array, b: Array, reg: float, tol: float) -> Solver:
    """Its marginals are right, its plan is none."""
    plan = np.outer(a, b)
    plan[:2, :2] += np.array([[1, -1], [-1, 1]])
    return lambda: plan


def endless(C: Array, a: Array, b: Array, reg: float, tol: float) -> Solver:
    """Hangs."""
    return lambda: time.sleep(600)  # type: ignore[return-value]


def stubborn(C: Array, a: Array, b: Array, reg: float, tol: float) -> Solver:
    """Hangs and hears no signal, as compiled code does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    return endless(C, a, b, reg, tol)


def raising(C: Array, a: Array, b: Array, reg: float, tol: float) -> Solver:
    """Raises an error when it solves."""

    def solve() -> Array:
        raise ArithmeticError("underflow")

    return solve


def dying(C: Array, a: Array, b: Array, reg: float, tol: float) -> Solver:
    """Ends its process."""
    return lambda: os._exit(3)


def second_fails(C: Array, a: Array, b: Array, reg: float, tol: float) -> Solver:
    """Right in the first problem of the points only: its least cost tells them apart."""
    first = float(os.environ["FIRST_PROBLEM"])
    return (right if np.isclose(C.sum(), first) else careless)(C, a, b, reg, tol)
