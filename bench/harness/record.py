"""One measurement as a value: a subject beside its rivals, in medians and quartiles."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from gossamer.timing import Timing

# The subject of most records.
GOSSAMER = "gossamer"
# Quartiles further apart than this share of the median: something else ran on the machine.
UNSTEADY = 0.2

Key: TypeAlias = tuple[str, str, str, str, int]
"""Topic, shape, pattern, dtype and threads of a record."""


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of something measured several times.

    Args:
        median: of the samples.
        low: first quartile.
        high: third quartile.
        count: number of samples.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, timing: Timing) -> "Quartiles":
        """Summarise a timing, in seconds.

        Example:
            >>> Quartiles.of(Timing.from_samples([1.0, 2.0, 3.0]))
            Quartiles(median=2.0, low=1.5, high=2.5, count=3)
        """
        return cls(timing.median, *timing.quartiles, len(timing.samples))

    @classmethod
    def exactly(cls, value: float) -> "Quartiles":
        """Something counted, not timed."""
        return cls(value, value, value, 1)


@dataclass(frozen=True)
class Record:
    """One subject measured beside its rivals in one interleaved run.

    Args:
        topic: what was measured, such as ``"forward"``.
        shape: text of the sizes.
        pattern: text of the pattern.
        dtype: such as ``"float32"``.
        threads: torch's number of threads.
        density: kept share of the entries, in [0, 1].
        subject: whose ratios are taken; a key of ``measured``.
        unit: ``"s"``, ``"B"``, or what is counted.
        measured: median and quartiles of each entrant.
        ratios: rival -> its median over the subject's, with the quartiles of the ratios taken
            round by round.
        useful_flops: operations at the kept entries, or 0 where that says nothing.
        skipped: rival -> why it was not measured.
        floors: rival -> seconds after which it was stopped, and which its median exceeds.
        reached: entrant -> largest error of its answers, where being right is a matter of degree.
        moved: entrant -> bytes that a call reads and writes, where the memory is what limits it.
    """

    topic: str
    shape: str
    pattern: str
    dtype: str
    threads: int
    density: float
    subject: str
    unit: str
    measured: dict[str, Quartiles]
    ratios: dict[str, Quartiles]
    useful_flops: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    reached: dict[str, float] = field(default_factory=dict)
    moved: dict[str, float] = field(default_factory=dict)

    @classmethod
    def timed(
        cls,
        key: Key,
        timings: Mapping[str, Timing],
        *,
        density: float = 1.0,
        subject: str = GOSSAMER,
        useful_flops: float = 0.0,
        skipped: dict[str, str] | None = None,
        floors: dict[str, float] | None = None,
        reached: dict[str, float] | None = None,
        moved: dict[str, float] | None = None,
    ) -> "Record":
        """Make the record of one interleaved run.

        Args:
            key: of the record.
            timings: by entrant, in seconds.
            density: kept share of the entries.
            subject: whose ratios are taken; without a timing of it there are no ratios.
            useful_flops: as in the record.
            skipped: as in the record.
            floors: as in the record.
            reached: as in the record.
            moved: as in the record.

        Returns:
            The record.

        Example:
            >>> ours, theirs = Timing.from_samples([1.0]), Timing.from_samples([2.0])
            >>> timings = {"gossamer": ours, "torch": theirs}
            >>> Record.timed(("t", "1x1", "2:4", "float32", 1), timings).ratios["torch"].median
            2.0
        """
        return cls(
            *key,
            density=density,
            subject=subject,
            unit="s",
            measured={name: Quartiles.of(timing) for name, timing in timings.items()},
            ratios=ratios(timings, subject) if subject in timings else {},
            useful_flops=useful_flops,
            skipped=skipped or {},
            floors=floors or {},
            reached=reached or {},
            moved=moved or {},
        )

    @property
    def key(self) -> Key:
        """What tells this record from others of the same run."""
        return (self.topic, self.shape, self.pattern, self.dtype, self.threads)

    @property
    def unsteady(self) -> bool:
        """Whether something disturbed this measurement."""
        return any(s.high - s.low > UNSTEADY * s.median for s in self.measured.values())

    def bandwidth(self, entrant: str) -> float:
        """Bytes per second that an entrant reads and writes."""
        return self.moved[entrant] / self.measured[entrant].median

    @property
    def gflops(self) -> float:
        """Useful GFLOP/s of the subject."""
        return self.useful_flops / self.measured[self.subject].median / 1e9


def ratios(timings: Mapping[str, Timing], subject: str) -> dict[str, Quartiles]:
    """How many times longer each rival took than the subject.

    Args:
        timings: of one interleaved run.
        subject: a key of it.

    Returns:
        For each other name, the ratio of the medians and the quartiles of the ratios of each
        round that both took part in: entrants of one round met the machine in the same state.

    Example:
        >>> a, b = Timing.from_samples([1.0, 1.0, 2.0]), Timing.from_samples([2.0, 3.0, 2.0])
        >>> ratios({"ours": a, "theirs": b}, "ours")["theirs"]
        Quartiles(median=2.0, low=1.5, high=2.5, count=3)
    """
    own = timings[subject]
    found = {}
    for name, timing in timings.items():
        if name == subject:
            continue
        rounds = [r / s for r, s in zip(timing.samples, own.samples, strict=False)]
        paired = Timing.from_samples(rounds)
        found[name] = Quartiles(timing.median / own.median, *paired.quartiles, len(rounds))
    return found
