"""What was measured, as values and as a JSON file that is whole after every record."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from gossamer.errors import CheckpointError, GossamerError
from gossamer.timing import Timing

SCHEMA = 1
# Quartiles further apart than this share of the median: something else ran on the machine.
UNSTEADY = 0.2

Key: TypeAlias = tuple[str, str, str, str, int]
"""Topic, shape, pattern, dtype and threads of a record."""


@dataclass(frozen=True)
class Spread:
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
    def of(cls, timing: Timing) -> "Spread":
        """Summarise a timing, in seconds.

        Example:
            >>> Spread.of(Timing.from_samples([1.0, 2.0, 3.0]))
            Spread(median=2.0, low=1.5, high=2.5, count=3)
        """
        return cls(timing.median, *timing.quartiles, len(timing.samples))

    @classmethod
    def exactly(cls, value: float) -> "Spread":
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
        unit: ``"s"`` or ``"B"``.
        measured: the spread of each candidate.
        ratios: rival -> its median over the subject's, with the quartiles of the ratios taken
            round by round.
        useful_flops: operations at the kept entries, or 0 where that says nothing.
        skipped: rival -> why it was not measured.
        floors: rival -> seconds after which it was stopped, and which its median exceeds.
        reached: candidate -> largest error of its answers, where being right is a matter of degree.
    """

    topic: str
    shape: str
    pattern: str
    dtype: str
    threads: int
    density: float
    subject: str
    unit: str
    measured: dict[str, Spread]
    ratios: dict[str, Spread]
    useful_flops: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    reached: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What tells this record from others of the same run."""
        return (self.topic, self.shape, self.pattern, self.dtype, self.threads)

    @property
    def unsteady(self) -> bool:
        """Whether something disturbed this measurement."""
        return any(s.high - s.low > UNSTEADY * s.median for s in self.measured.values())

    @property
    def gflops(self) -> float:
        """Useful GFLOP/s of the subject."""
        return self.useful_flops / self.measured[self.subject].median / 1e9


def ratios(timings: Mapping[str, Timing], subject: str) -> dict[str, Spread]:
    """How many times longer each rival took than the subject.

    Args:
        timings: of one interleaved run.
        subject: a key of it.

    Returns:
        For each other name, the ratio of the medians and the quartiles of the ratios of each
        round: candidates of one round met the machine in the same mood.

    Example:
        >>> a, b = Timing.from_samples([1.0, 1.0, 2.0]), Timing.from_samples([2.0, 3.0, 2.0])
        >>> ratios({"ours": a, "theirs": b}, "ours")["theirs"]
        Spread(median=2.0, low=1.5, high=2.5, count=3)
    """
    own = timings[subject]
    found = {}
    for name, timing in timings.items():
        if name == subject:
            continue
        rounds = [r / s for r, s in zip(timing.samples, own.samples, strict=True)]
        paired = Timing.from_samples(rounds)
        found[name] = Spread(timing.median / own.median, *paired.quartiles, len(rounds))
    return found


@dataclass
class Results:
    """All records of a bench, and where and with what they were measured.

    Args:
        path: the JSON file.
        machine: facts that must stay the same for results to be comparable.
        settings: of the run, such as whether it was quick.
        commits: git commits under which records were measured, in order; empty without git.
        records: in the order in which they were measured.
        errors: what went wrong, one line each.
        complete: whether the whole plan is measured.
    """

    path: Path
    machine: dict[str, Any]
    settings: dict[str, Any]
    commits: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    complete: bool = False

    @property
    def keys(self) -> set[Key]:
        """Keys of what is measured."""
        return {record.key for record in self.records}

    def add(self, records: Iterable[Record]) -> None:
        """Append records and write the file."""
        self.records.extend(records)
        self.save()

    def save(self) -> None:
        """Write the file: a temporary one first, renamed at the end, so that it is never half.

        Raises:
            GossamerError: the folder cannot be written.
        """
        content = {"schema": SCHEMA} | {k: v for k, v in asdict(self).items() if k != "path"}
        temporary = self.path.with_suffix(".json.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            temporary.replace(self.path)
        except OSError as error:
            raise GossamerError(
                f"{self.path} cannot be written: {error.strerror}; choose another --out"
            ) from error

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read a file that `save` wrote.

        Args:
            path: the file.

        Returns:
            Its results.

        Raises:
            CheckpointError: it is missing, damaged, or of another version.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise CheckpointError(
                    f"{path} has schema {content['schema']}, this version reads {SCHEMA}; "
                    "measure anew without --resume"
                )
            return cls(
                path,
                content["machine"],
                content["settings"],
                content["commits"],
                [_record(entry) for entry in content["records"]],
                content["errors"],
                content["complete"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{path} holds no bench results ({type(error).__name__}: {error}); "
                "measure anew without --resume"
            ) from error


def _record(entry: dict[str, Any]) -> Record:
    spreads = {
        name: {who: Spread(**spread) for who, spread in entry[name].items()}
        for name in ("measured", "ratios")
    }
    return Record(**entry | spreads)
