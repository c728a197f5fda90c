"""Time several functions side by side, so that a busy or slow machine is unfair to none.

Functions are run in turn, one call each a round, and the order changes from round to round:
drift of the clock speed, other processes and warm caches fall on all of them alike. What is
compared is the medians.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gossamer.errors import ArgumentError

__all__ = ["Timing", "interleaved", "rotation", "threads"]


@dataclass(frozen=True)
class Timing:
    """Seconds that one function took, call by call.

    Args:
        median: median of the samples, in seconds.
        quartiles: first and third quartile of the samples, in seconds.
        samples: every measured call in the order in which it was made, in seconds.
    """

    median: float
    quartiles: tuple[float, float]
    samples: tuple[float, ...]

    @classmethod
    def from_samples(cls, samples: Sequence[float]) -> "Timing":
        """Summarise samples.

        Args:
            samples: seconds, at least one.

        Returns:
            Their timing.

        Raises:
            ArgumentError: there is no sample.

        Example:
            >>> Timing.from_samples([3.0, 1.0, 2.0]).median
            2.0
        """
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
    """Order of play in one round: rotated by one each round, reversed on every second lap.

    Args:
        names: who takes part.
        turn: number of the round, from 0.

    Returns:
        The names in the order of that round. Over one lap each is first, second, ... once, and
        the reversal changes who runs after whom.

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
    """Time functions against each other, one call each a round, in changing order.

    Args:
        fns: functions without arguments, by name.
        repeats: measured rounds, at least 1.
        warmup: rounds before them that are not measured.
        before: what to call before each call of a function, outside of its time; by name.

    Returns:
        A timing for each name, in the order of ``fns``, of ``repeats`` samples each.

    Raises:
        ArgumentError: ``fns`` is empty, ``repeats`` below 1 or ``warmup`` below 0.

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
    # A collection would be charged to whoever happens to run when it starts.
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
    """Set torch's number of threads, and set it back on leaving.

    Args:
        count: threads, at least 1; None leaves the number as it is.

    Yields:
        The number in force.

    Raises:
        ArgumentError: ``count`` below 1.

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
