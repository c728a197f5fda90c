"""Interleaved timing of several functions, so that load on the machine affects all of them alike.

Each round calls every function once, and the order changes from round to round. Drift of the clock
speed, other processes and warm caches then affect all functions alike. Compare the medians.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gossamer.arguments import check
from gossamer.errors import ArgumentError

__all__ = ["Timing", "interleaved", "rotation", "threads"]


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one function.

    Args:
        median: median of the samples, in seconds.
        quartiles: first and third quartile of the samples, in seconds.
        samples: seconds of every measured call, in order.
    """

    median: float
    quartiles: tuple[float, float]
    samples: tuple[float, ...]

    @classmethod
    def from_samples(cls, samples: Sequence[float]) -> "Timing":
        """Summarise samples.

        Args:
            samples: seconds per call, at least one.

        Returns:
            The timing of these samples.

        Raises:
            ArgumentError: there is no sample.

        Example:
            >>> Timing.from_samples([3.0, 1.0, 2.0]).median
            2.0
        """
        check(Timing.from_samples, locals())
        if not samples:
            raise ArgumentError(
                "Timing got no samples; at least one is needed: run the function once"
            )
        if len(samples) == 1:
            low = high = samples[0]
        else:
            low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(statistics.median(samples), (low, high), tuple(samples))


def rotation(names: Sequence[str], turn: int) -> list[str]:
    """Return the order of the calls in one round.

    The order rotates by one per round, so that over one lap (as many rounds as names) each name is
    first, second, ... once. Every second lap is reversed, which changes the neighbours.

    Args:
        names: names of the functions.
        turn: number of the round, from 0.

    Returns:
        The names in the order of that round.

    Example:
        >>> [rotation(["a", "b", "c"], turn) for turn in (0, 1, 3)]
        [['a', 'b', 'c'], ['b', 'c', 'a'], ['c', 'b', 'a']]
    """
    start = turn % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if turn // len(names) % 2 else order


def interleaved(
    fns: Mapping[str, Callable[[], object]],
    repeats: int = 20,
    warmup: int = 2,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, Timing]:
    """Time functions side by side, with one call per function and round in changing order.

    Args:
        fns: functions without arguments, by name.
        repeats: measured rounds, at least 1.
        warmup: unmeasured rounds before the measured ones, at least 0.
        before: functions to call before each call of the function of that name; not timed.

    Returns:
        One timing per name, in the order of `fns`, with `repeats` samples each.

    Raises:
        ArgumentError: `fns` is empty, `repeats` is below 1, or `warmup` is below 0.

    Example:
        >>> timings = interleaved({"short": lambda: 1, "long": lambda: sum(range(9999))}, repeats=5)
        >>> timings["short"].median < timings["long"].median
        True
    """
    if not fns:
        raise ArgumentError("interleaved got no functions; give at least one in fns")
    if repeats < 1 or warmup < 0:
        raise ArgumentError(
            f"interleaved got repeats={repeats}, warmup={warmup}; "
            "repeats must be at least 1 and warmup at least 0"
        )
    names = list(fns)
    prepare = before or {}
    samples: dict[str, list[float]] = {name: [] for name in names}
    # A garbage collection would count as time of the function during which it starts.
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(-warmup, repeats):
            for name in rotation(names, turn % (2 * len(names))):
                fn = fns[name]
                if name in prepare:
                    prepare[name]()
                start = time.perf_counter()
                fn()
                elapsed = time.perf_counter() - start
                if turn >= 0:
                    samples[name].append(elapsed)
    finally:
        if collecting:
            gc.enable()
    return {name: Timing.from_samples(samples[name]) for name in names}


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Set torch's number of threads, and restore it on exit.

    Args:
        count: threads, at least 1; None leaves the number as it is.

    Yields:
        The number in force.

    Raises:
        ArgumentError: `count` is below 1.

    Example:
        >>> with threads(1) as number:
        ...     number
        1
    """
    import torch

    if count is not None and count < 1:
        raise ArgumentError(f"threads got {count}; the number of threads must be at least 1")
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
