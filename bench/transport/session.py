"""Measure Gossamer's transport beside its rivals, each in a process of its own.

Each solver first solves a problem once under a limit of time, and the L1 error of both marginals
of its answer is measured: one that misses it gets no time. The others then take turns.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec

import numpy as np

from bench.harness.bars import STOPPED
from bench.harness.plan import Job, Plan
from bench.harness.process import Worker
from bench.harness.record import GOSSAMER, Key, Quartiles, Record
from bench.transport import cases, marginals, solvers
from bench.transport.attempt import Attempt
from bench.transport.bars import LARGE, MEMORY, TRACE, TRANSPORT, bound_on
from bench.transport.cases import TOLERANCE, Case, Scope, Transport
from bench.transport.solvers import (
    LAZY,
    POT,
    POT_LOG,
    PUBLISHED,
    RIVALS,
    SOLVERS,
    TRACED,
    Solver,
)
from gossamer.timing import Timing, interleaved

GROUP = "transport"
FILE = solvers.__file__
# A call as short as this is repeated; longer ones are measured once a seed.
FAST = 0.3
MOST_LAPS = 9
# Gossamer itself may take so long before it counts as hanging.
OWN_LIMIT = 100.0
TRACE_ROUNDS = 3
SAME_SWEEPS = f"not tried; it makes the sweeps of {POT}, and each takes longer"


def transport_jobs(plan: Plan[Scope]) -> Iterator[Job]:
    """Every case with every number of threads, the published case, the traces, the large case."""
    scope = plan.scope
    session = Session(scope)
    first, last = plan.threads[0], plan.threads[-1]
    for case in scope.cases:
        for threads in plan.threads:
            measure = partial(session.measure, case, threads, RIVALS)
            yield _job(case, threads, [key(TRANSPORT, case, threads)], measure)
    case = scope.published
    measure = partial(session.measure, case, first, (PUBLISHED, *RIVALS[:2]))
    yield _job(case, first, [key(TRANSPORT, case, first)], measure)
    for case in scope.traces:
        keys = [trace_key(case, tolerance, first) for tolerance in scope.tolerances]
        yield _job(case, first, keys, partial(session.trace, case, first))
    case = scope.large
    keys = [key(topic, case, last) for topic in (LARGE, MEMORY)]
    yield _job(case, last, keys, partial(session.lazy, case, last))


def key(topic: str, case: Case, threads: int) -> Key:
    """The key of a case's record."""
    return (topic, case.shape, case.pattern, "float64", threads)


def trace_key(case: Case, tolerance: float, threads: int) -> Key:
    """The key of one point of a trace."""
    return (TRACE, case.shape, f"{case.pattern}, to {tolerance:.0e}", "float64", threads)


def _job(case: Case, threads: int, keys: list[Key], measure: "partial[list[Record]]") -> Job:
    title = f"{keys[0][0]}, {case.pattern}, n = {case.n}, threads: {threads}"
    return Job(GROUP, title, threads, keys, measure)


@dataclass
class Session:
    """The workers of one run, and which solver could not do what.

    Args:
        scope: how much is measured.
        solvers: by name.
        file: where their functions are.
    """

    scope: Scope
    solvers: Mapping[str, Solver] = field(default_factory=lambda: SOLVERS)
    file: str = FILE

    def __post_init__(self) -> None:
        self._workers: dict[tuple[str, int], Worker] = {}
        # With more threads a rival is at best that many times faster: it is not tried again.
        self._out: dict[tuple[Case, str], str] = {}

    def measure(
        self, case: Case, threads: int, rivals: Sequence[str], errors: list[str]
    ) -> list[Record]:
        """Solve a case with every solver.

        Args:
            case: what to solve.
            threads: for each.
            rivals: that take part beside Gossamer.
            errors: a case that Gossamer does not solve is appended to it.

        Returns:
            One record.
        """
        problems = {seed: cases.build(case, seed) for seed in self.scope.seeds}
        ours = self._attempt(GOSSAMER, threads, OWN_LIMIT)
        ours.load(problems)
        own_seconds = ours.try_out(self.scope.seeds[0])
        attempts = [ours]
        out: dict[str, str] = {}
        for name in rivals:
            reason = self._absent(name) or self._out.get((case, name), "")
            last = attempts[-1]
            if name == POT_LOG and last.name == POT and last.failed.startswith(STOPPED):
                reason = reason or SAME_SWEEPS
            if reason:
                out[name] = reason
                continue
            bound = bound_on(case, name) if threads == 1 else 0.0
            limit = max(self.scope.cap_for(case), 1.05 * max(bound, 3.0) * own_seconds)
            attempts.append(self._qualified(name, threads, limit, problems, bool(bound)))
        timings = self._time([one for one in attempts if not one.failed])
        for one in attempts:
            if one.failed:
                timings.pop(one.name, None)
                out[one.name] = one.failed
                self._out[case, one.name] = f"not tried; with fewer threads {one.failed}"
        if ours.failed:
            errors.append(f"{GOSSAMER}, {case.pattern}, n = {case.n}: {ours.failed}")
            self._out.pop((case, GOSSAMER))
        return [_record(key(TRANSPORT, case, threads), timings, out, attempts)]

    def _qualified(
        self, name: str, threads: int, limit: float, problems: dict[int, Transport], barred: bool
    ) -> Attempt:
        """A rival that has solved one problem, or is out."""
        rival = self._attempt(name, threads, limit)
        first, *others = problems
        rival.load({first: problems[first]})
        rival.try_out(first)
        if not rival.failed:
            rival.load(problems)
        elif rival.at_least and barred and others:
            # A bar speaks of the median: a second problem decides it.
            second = self._attempt(name, threads, limit)
            second.load({others[0]: problems[others[0]]})
            second.try_out(others[0])
            rival.at_least |= second.at_least
        return rival

    def _time(self, live: Sequence[Attempt]) -> dict[str, Timing]:
        """Once for each seed; then those that are fast again, as often as time allows."""
        if not live:
            return {}
        seeds = self.scope.seeds
        timings = interleaved({one.name: one for one in live}, repeats=len(seeds), warmup=0)
        for one in live:
            one.judge(seeds)
        fast = [one for one in live if not one.failed and timings[one.name].median < FAST]
        lap = len(seeds) * sum(timings[one.name].median for one in fast)
        if fast and (laps := min(MOST_LAPS, int(self.scope.seconds / lap))):
            again = {one.name: one for one in fast}
            timings |= interleaved(again, repeats=laps * len(seeds), warmup=0)
        return timings

    def trace(self, case: Case, threads: int, errors: list[str]) -> list[Record]:
        """Solve one problem to ever smaller errors, each time from the start.

        Args:
            case: whose first problem is solved.
            threads: for each.
            errors: of Gossamer.

        Returns:
            A record for each tolerance.
        """
        seeds = self.scope.seeds[:1]
        problems = {seed: cases.build(case, seed) for seed in seeds}
        out = {name: reason for name in TRACED if (reason := self._absent(name))}
        records = []
        for tolerance in self.scope.tolerances:
            attempts = []
            for name in TRACED:
                if name not in out:
                    one = self._attempt(name, threads, self.scope.cap_for(case), seeds, tolerance)
                    one.load(problems)
                    one.try_out(seeds[0])
                    attempts.append(one)
            live = {one.name: one for one in attempts if not one.failed}
            timings = interleaved(live, repeats=TRACE_ROUNDS, warmup=0) if live else {}
            out |= {one.name: one.failed for one in attempts if one.failed}
            at = trace_key(case, tolerance, threads)
            records.append(_record(at, timings, dict(out), attempts))
        if GOSSAMER in out:
            errors.append(f"{GOSSAMER}, trace of {case.pattern}: {out[GOSSAMER]}")
        return records

    def lazy(self, case: Case, threads: int, errors: list[str]) -> list[Record]:
        """Solve a problem whose cost is never stored.

        Args:
            case: of points; their squared distances are halved, which makes 1 the largest.
            threads: that it may use.
            errors: of Gossamer.

        Returns:
            Its seconds, and the most bytes that its process held.
        """
        seed = self.scope.seeds[0]
        weights = np.full(case.n, 1 / case.n)
        problem = (cases.points(case, seed), weights, weights, case.reg)
        one = self._attempt(LAZY, threads, 2 * OWN_LIMIT, (seed,))
        one.worker.kill()  # the memory of a fresh process
        one.load({seed: problem})
        took = one.try_out(seed)
        if one.failed:
            errors.append(f"{LAZY}, {case.pattern}, n = {case.n}: {one.failed}")
            out = {LAZY: one.failed}
            return [
                Record(*key(topic, case, threads), 1.0, LAZY, unit, {}, {}, skipped=out)
                for topic, unit in ((LARGE, "s"), (MEMORY, "B"))
            ]
        held = float(one.worker.ask("memory", seed))
        one.worker.kill()
        return [
            Record(
                *key(topic, case, threads), 1.0, LAZY, unit, {LAZY: Quartiles.exactly(value)}, {}
            )
            for topic, unit, value in ((LARGE, "s", took), (MEMORY, "B", held))
        ]

    def _attempt(
        self,
        name: str,
        threads: int,
        limit: float,
        seeds: Sequence[int] = (),
        tolerance: float = TOLERANCE,
    ) -> Attempt:
        made = Worker(self.solvers[name].function, threads, self.file, marginals.__file__)
        worker = self._workers.setdefault((name, threads), made)
        return Attempt(name, worker, limit, seeds or self.scope.seeds, tolerance)

    def _absent(self, name: str) -> str:
        solver = self.solvers[name]
        if not solver.package or find_spec(solver.package):
            return ""
        return f"not installed: pip install {solver.distribution}"


def _record(
    at: Key, timings: Mapping[str, Timing], out: dict[str, str], attempts: Sequence[Attempt]
) -> Record:
    return Record.timed(
        at,
        timings,
        skipped=out,
        floors={one.name: one.floor for one in attempts if one.floor},
        reached={one.name: one.error for one in attempts if one.error is not None},
    )
