"""A process that runs one solver of problems, and that may be killed at any time.

    python -P worker.py CONNECTION FILE JUDGE FUNCTION

FUNCTION of FILE takes a problem and returns a call without arguments that solves it; ``error`` of
the file JUDGE takes an answer and its problem. This file imports nothing of Gossamer: a rival's
process holds the rival alone, starts in a fraction of a second, and shares no pool of threads.
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

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG

Prepare = Callable[..., Callable[[], Any]]


class InterruptedSolveError(Exception):
    """The parent lost patience."""


class Desk:
    """What a worker does when it is asked.

    Args:
        prepare: from a problem to a call that solves it.
        judge: from an answer and its problem to the answer's error.
    """

    def __init__(self, prepare: Prepare, judge: Callable[..., float]):
        self.prepare, self.judge = prepare, judge
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
        return self.judge(self.answers[key], *self.problems[key])

    def memory(self, key: int) -> int:
        """The most bytes that this process has held so far."""
        kilo = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo

    def forget(self, key: int) -> None:
        """Drop all problems."""
        for store in (self.problems, self.solvers, self.answers):
            store.clear()


def serve(connection: Connection, prepare: Prepare, judge: Callable[..., float]) -> None:
    """Answer (order, key, ...) by (True, result) or (False, what went wrong) until the end."""
    desk = Desk(prepare, judge)
    signal.signal(signal.SIGINT, desk.interrupt)
    with suppress(EOFError, ConnectionError):
        while True:
            order, key, *rest = connection.recv()
            try:
                answer = (True, getattr(desk, order)(key, *rest))
            except Exception as error:  # a rival may fail in any way
                answer = (False, f"{type(error).__name__}: {error}")
            connection.send(answer)


def load_function(file: str, name: str) -> Callable[..., Any]:
    """A function of a file, without its package."""
    spec = importlib.util.spec_from_file_location("solvers", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[..., Any] = getattr(module, name)
    return function


def main() -> None:
    """Serve the connection that the command line names."""
    handle, file, judge, name = sys.argv[1:]
    if sys.platform == "linux":
        # A stopped process would outlive a killed parent forever.
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    serve(Connection(int(handle)), load_function(file, name), load_function(judge, "error"))


if __name__ == "__main__":
    main()
