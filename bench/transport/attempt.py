"""One solver at one transport problem: what it took, how good it was, and why it is out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from statistics import median_low
from typing import Any

from bench.harness.bars import FAILED, GAVE_UP, STOPPED
from bench.harness.contest import StillRunningError
from bench.harness.process import FailedError, Worker
from bench.transport.cases import ROUNDING
from gossamer.timing import interleaved


@dataclass
class Attempt:
    """One solver at one case.

    Args:
        name: of the solver.
        worker: that holds it.
        limit: seconds for one call.
        seeds: keys of the problems, in the order of the rounds.
        tolerance: of the L1 error.
        failed: why it gets no time; "" while it takes part.
        error: the largest L1 error of its answers.
        at_least: seed -> seconds that a right answer surely takes.
    """

    name: str
    worker: Worker
    limit: float
    seeds: Sequence[int]
    tolerance: float
    failed: str = ""
    error: float | None = None
    at_least: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._turns = cycle(self.seeds)

    def __call__(self) -> None:
        """Solve the next problem, unless this solver is out: this is what is timed."""
        if not self.failed:
            self._solve(next(self._turns))

    def load(self, problems: Mapping[int, tuple[Any, ...]]) -> None:
        """Hand over problems.

        Args:
            problems: cost, weights and reg, by seed.
        """
        try:
            self.worker.ask("forget", 0)
            for seed, problem in problems.items():
                self.worker.ask("load", seed, *problem, self.tolerance)
        except (FailedError, StillRunningError) as error:
            self.failed = f"could not be prepared: {error}"

    def try_out(self, seed: int) -> float:
        """Solve a problem once and judge the answer.

        Args:
            seed: of the problem.

        Returns:
            The seconds it took.
        """
        if self.failed:
            return 0.0
        timing = interleaved({self.name: partial(self._solve, seed)}, repeats=1, warmup=0)
        took = timing[self.name].median
        self.judge((seed,))
        if not self.failed:
            self.at_least[seed] = took
        return took

    def judge(self, seeds: Sequence[int]) -> None:
        """Measure the error of the last answers.

        Args:
            seeds: of the problems.
        """
        for seed in seeds:
            if self.failed:
                return
            try:
                error = float(self.worker.ask("error", seed))
            except (FailedError, StillRunningError) as reason:
                self.failed = f"its answer could not be read: {reason}"
                return
            self.error = max(error, self.error or 0.0)
            if not error <= self.tolerance + ROUNDING:
                self.failed = f"{GAVE_UP} at an L1 error of {error:.1e}"

    @property
    def floor(self) -> float | None:
        """Seconds that the median over all problems surely exceeds, if it was stopped at that.

        None when it gave up by itself, or when too few problems were tried to tell.
        """
        unknown = len(self.seeds) - len(self.at_least)
        if not self.failed.startswith(STOPPED) or unknown > len(self.at_least):
            return None
        return median_low([0.0] * unknown + sorted(self.at_least.values())) or None

    def _solve(self, seed: int) -> None:
        try:
            self.worker.ask("solve", seed, limit=self.limit)
        except StillRunningError:
            self.failed = f"{STOPPED} after {self.limit:.2g} s"
            self.at_least[seed] = self.limit
        except FailedError as error:
            self.failed = f"{FAILED}: {error}"
