"""A process that runs one solver of transport problems, and that may be killed at any time.

    python -P ot_worker.py CONNECTION FILE FUNCTION

FUNCTION of FILE takes (C, a, b, reg, tol) and returns a call without arguments that solves the
problem. This file imports nothing of Gossamer: a rival's process holds the rival and NumPy alone,
starts in a fraction of a second, and shares no pool of threads with anybody.
"""

import ctypes
import importlib.util
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def marginal_error(answer: Any, a: Any, b: Any) -> float:
    """|P 1 - a|_1 + |P' 1 - b|_1 of what a solver returned.

    Args:
        answer: the plan [n, m], or an object whose ``marginals()`` gives P 1 and P' 1.
        a: [n].
        b: [m].

    Returns:
        The error; infinite when an entry is not finite or negative.
    """
    if hasattr(answer, "marginals"):
        rows, columns = answer.marginals()
    else:
        plan = np.asarray(answer)
        if plan.shape != (len(a), len(b)) or not plan.min() >= 0:
            return float("inf")
        rows, columns = plan.sum(1), plan.sum(0)
    error = float(np.abs(rows - a).sum() + np.abs(columns - b).sum())
    return error if np.isfinite(error) else float("inf")


class InterruptedSolveError(Exception):
    """The parent lost patience."""


class Bench:
    """What a worker does when it is asked.

    Args:
        prepare: from a problem to a call that solves it.
    """

    def __init__(self, prepare: Callable[..., Callable[[], Any]]):
        self.prepare = prepare
        self.problems: dict[int, tuple[Any, ...]] = {}
        self.solvers: dict[int, Callable[[], Any]] = {}
        self.answers: dict[int, Any] = {}
        self.busy = False

    def load(self, key: int, *problem: Any) -> None:
        """Take a problem and make it ready: conversions and compilation are not timed."""
        self.problems[key] = problem
        self.solvers[key] = self.prepare(*problem)

    def solve(self, key: int) -> None:
        """Solve a problem; the parent holds the clock."""
        self.busy = True
        try:
            self.answers[key] = self.solvers[key]()
        finally:
            self.busy = False

    def interrupt(self, *_: object) -> None:
        """End a solve that runs Python code; its process need not be killed."""
        if self.busy:
            raise InterruptedSolveError

    def error(self, key: int) -> float:
        """Judge the last answer."""
        return marginal_error(self.answers[key], *self.problems[key][1:3])

    def memory(self, key: int) -> int:
        """The most bytes that this process has held so far."""
        kilo = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo

    def forget(self, key: int) -> None:
        """Drop all problems."""
        for store in (self.problems, self.solvers, self.answers):
            store.clear()


def serve(connection: Connection, prepare: Callable[..., Callable[[], Any]]) -> None:
    """Answer (order, key, ...) by (True, result) or (False, what went wrong) until the end."""
    bench = Bench(prepare)
    signal.signal(signal.SIGINT, bench.interrupt)
    with suppress(EOFError, ConnectionError):
        while True:
            order, key, *rest = connection.recv()
            try:
                answer = (True, getattr(bench, order)(key, *rest))
            except Exception as error:  # a rival may fail in any way
                answer = (False, f"{type(error).__name__}: {error}")
            connection.send(answer)


def load_function(file: str, name: str) -> Callable[..., Callable[[], Any]]:
    """A function of a file, without its package."""
    spec = importlib.util.spec_from_file_location("solvers", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[..., Callable[[], Any]] = getattr(module, name)
    return function


def main() -> None:
    """Serve the connection that the command line names."""
    handle, file, name = sys.argv[1:]
    if sys.platform == "linux":
        # A stopped process would outlive a killed parent for ever.
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    serve(Connection(int(handle)), load_function(file, name))


if __name__ == "__main__":
    main()
