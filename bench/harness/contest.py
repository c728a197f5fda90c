"""A contest: every entrant is judged first, and those that are right are timed together.

Each call starts from the same numbers: they are put back before it, outside of its time.
"""

import importlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import numpy as np

from bench.harness.plan import Calls, Plan, Scope, time_together
from bench.harness.record import GOSSAMER, Key, Record
from gossamer import GossamerError

# Where a penalty jumps, rounding may decide otherwise for so many of the entries.
UNDECIDED = 1e-5
TOLERANCE = {"float32": 2e-4, "float64": 1e-9}
ABSENT = "not installed: pip install {}"


class WrongResultError(GossamerError, RuntimeError):
    """An entrant computed something else than the formula that it is compared with."""


class UnavailableError(Exception):
    """A rival that cannot run here; the message says why."""


class StillRunningError(Exception):
    """A call was stopped before it ended."""


@dataclass(frozen=True)
class Entrant:
    """One way to do what a record is about.

    Args:
        run: what is timed; gives its answer.
        before: puts the numbers back, outside of the time.
        judged: whether the answer is compared.
        answer: makes it of what `run` gave.
        tolerance: relative, for the comparison; None takes the dtype's.
    """

    run: Callable[[], Any]
    before: Callable[[], object] = field(default=lambda: None)
    judged: bool = True
    answer: Callable[[Any], Any] = field(default=lambda given: given)
    tolerance: float | None = None


@dataclass(frozen=True)
class Contest:
    """What one record is about.

    Args:
        key: of the record.
        entrants: by name; a function that raises `UnavailableError` for a rival that is absent.
        expected: the right answer.
    """

    key: Key
    entrants: Mapping[str, Callable[[], Entrant]]
    expected: Callable[[], Any]


def measure(plan: Plan[Scope], contest: Contest, errors: list[str]) -> Record:
    """Judge every entrant, and time those that are right.

    Args:
        plan: gives the number of rounds and the limit of one call.
        contest: who takes part, at what.
        errors: a wrong rival is appended to it.

    Returns:
        The record.

    Raises:
        WrongResultError: Gossamer is wrong.
    """
    expected = contest.expected()
    live: dict[str, Entrant] = {}
    skipped: dict[str, str] = {}
    floors: dict[str, float] = {}
    limit = plan.limit
    for name, build in contest.entrants.items():
        try:
            entrant = build()
            entrant.before()
            with stopped_after(limit if name != GOSSAMER else None):
                answer = entrant.run()
            if entrant.judged:
                tolerance = entrant.tolerance or TOLERANCE[contest.key[3]]
                check_answer(f"{name}, {contest.key}", entrant.answer(answer), expected, tolerance)
            live[name] = entrant
        except UnavailableError as reason:
            skipped[name] = str(reason)
        except StillRunningError as reason:
            skipped[name], floors[name] = str(reason), limit
        except WrongResultError as error:
            if name == GOSSAMER:
                raise
            skipped[name] = str(error)
            errors.append(str(error))
    calls: Calls = {name: entrant.run for name, entrant in live.items()}
    timings = time_together(plan, calls, {name: entrant.before for name, entrant in live.items()})
    return Record.timed(contest.key, timings, skipped=skipped, floors=floors)


def check_answer(who: str, answer: Any, expected: Any, tolerance: float) -> None:
    """Raise unless an answer is right.

    Args:
        who: named in the error.
        answer: array or tensor.
        expected: the same shape.
        tolerance: for the largest difference, relative to the largest entry.

    Raises:
        WrongResultError: another shape, NaN, or too many entries that differ.

    Example:
        >>> check_answer("sum", [3.0], [3.0], 1e-9)
    """
    found, wanted = (np.asarray(part, np.float64) for part in (answer, expected))
    if found.shape != wanted.shape:
        raise WrongResultError(f"{who} has shape {found.shape}; it must be {wanted.shape}")
    # Written so that NaN is far.
    scale = float(np.abs(wanted).max(initial=0.0)) or 1.0
    far = np.count_nonzero(~(np.abs(found - wanted) <= tolerance * scale))
    if far > UNDECIDED * found.size:
        raise WrongResultError(f"{who} is wrong at {far} of {found.size} entries")


@contextmanager
def stopped_after(seconds: float | None) -> Iterator[None]:
    """Interrupt a block that runs for too long, where the system can: Unix, the main thread.

    Args:
        seconds: limit; None for none.

    Raises:
        StillRunningError: it was still running.
    """
    able = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if seconds is None or not able:
        yield
        return

    def stop(*_: object) -> None:
        raise StillRunningError(f"not done after {seconds:.3g} s")

    handler = signal.signal(signal.SIGALRM, stop)
    start = time.monotonic()
    earlier, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        # An alarm that was set before, such as a test's limit, goes on.
        left = max(earlier - (time.monotonic() - start), 1e-3) if earlier else 0.0
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, handler)


def package(module: str, name: str, distribution: str) -> Any:
    """Something of an optional package.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        # ModOpt prints on import which optional packages are missing.
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise UnavailableError(ABSENT.format(distribution)) from error
