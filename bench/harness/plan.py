"""How much is measured, and the jobs that do it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from bench.harness.record import UNSTEADY, Key, Record
from gossamer.timing import Timing, interleaved

Scope = TypeVar("Scope")
Calls = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Plan(Generic[Scope]):
    """How much is measured.

    Args:
        scope: what the topic measures; each topic has a class of its own for it.
        threads: numbers of threads.
        seconds: for one job, as far as `rounds` allows.
        rounds: least and most rounds of a job.
        limit: seconds after which a rival's call is stopped.
    """

    scope: Scope
    threads: tuple[int, ...] = (1, 2)
    seconds: float = 1.2
    rounds: tuple[int, int] = (7, 101)
    limit: float = 10.0

    def rounds_for(self, round_seconds: float) -> int:
        """How many rounds fit, when one takes so long.

        Args:
            round_seconds: of one round, positive.

        Returns:
            Their number, within `rounds`.

        Example:
            >>> [Plan(None).rounds_for(seconds) for seconds in (1.0, 0.125, 0.001)]
            [7, 9, 101]
        """
        least, most = self.rounds
        return max(least, min(most, int(self.seconds / round_seconds)))


def quick(scope: Scope) -> Plan[Scope]:
    """A plan that shows that everything works; its numbers mean little.

    Args:
        scope: as little of the topic as shows that.

    Returns:
        The plan: one thread, few rounds.

    Example:
        >>> quick(None).threads
        (1,)
    """
    return Plan(scope, threads=(1,), seconds=0.2, rounds=(3, 11), limit=1.0)


@dataclass
class Job:
    """One interleaved run of the plan.

    Args:
        group: which part of the topic it belongs to.
        title: shown while it runs.
        threads: number of threads to run it with.
        keys: of the records it will give.
        run: measures; appends what went wrong with a rival to its argument.
    """

    group: str
    title: str
    threads: int
    keys: list[Key]
    run: Callable[[list[str]], list[Record]] = field(repr=False)


def time_together(
    plan: Plan[Scope], calls: Calls, before: Calls | None = None
) -> dict[str, Timing]:
    """Time calls that have just run once, as long as the plan allows.

    A run that other work on the machine disturbed is repeated once, and the steadier of the two
    counts: they are chosen by the distance of their quartiles, never by their result.

    Args:
        plan: gives the number of rounds.
        calls: by name.
        before: what to call before each call, outside of its time; by name.

    Returns:
        A timing for each.
    """
    probe = interleaved(calls, repeats=1, warmup=0, before=before)
    rounds = plan.rounds_for(sum(timing.median for timing in probe.values()))
    timings = interleaved(calls, repeats=rounds, warmup=0, before=before)
    if unsteadiness(timings) > UNSTEADY:
        again = interleaved(calls, repeats=rounds, warmup=0, before=before)
        timings = min(timings, again, key=unsteadiness)
    return timings


def unsteadiness(timings: Mapping[str, Timing]) -> float:
    """The largest distance between quartiles, over the median of that timing.

    Example:
        >>> unsteadiness({"ours": Timing.from_samples([1.0, 2.0, 3.0])})
        0.5
    """
    return max((t.quartiles[1] - t.quartiles[0]) / t.median for t in timings.values())
