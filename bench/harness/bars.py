"""Bars: what the engine must reach; and verdicts: whether a record does.

A rival that returned something else than the solution has no time, so it neither meets nor misses
a bar. One that was stopped meets it when it had run that many times longer than the subject.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import inf
from typing import Literal

from bench.harness.record import Record
from bench.harness.words import times

# How the reason begins why a rival has no time: it was stopped, it ended by itself, it raised.
STOPPED, GAVE_UP, FAILED = "not done", "gave up", "failed"

Kind = Literal["ratio", "share", "extra", "count", "least", "bandwidth"]


@dataclass(frozen=True)
class Bar:
    """A bound on records.

    Args:
        topic: of the records it is for.
        against: rivals, of which the fastest that is right counts; empty for a count.
        bound: the value.
        kind: ``"ratio"``: rival / subject >= bound; ``"share"``: subject / rival <= bound;
            ``"extra"``: subject - rival <= bound, in the record's unit; ``"count"``:
            subject <= bound; ``"least"``: subject >= bound; ``"bandwidth"``: the subject's bytes
            per second / the rival's >= bound.
        patterns: globs on the pattern of those records; empty for any.
        shapes: texts of the shapes it is for; empty for any.
        dtype: of the records; "" for any.
        words: what must hold.
    """

    topic: str
    against: tuple[str, ...]
    bound: float
    kind: Kind = "ratio"
    patterns: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    dtype: str = ""
    words: str = ""

    def concerns(self, record: Record) -> bool:
        """Whether this bar is for a record."""
        return (
            record.topic == self.topic
            and (not self.patterns or any(fnmatchcase(record.pattern, p) for p in self.patterns))
            and (not self.shapes or record.shape in self.shapes)
            and self.dtype in ("", record.dtype)
        )


@dataclass(frozen=True)
class Verdict:
    """A record set beside a bar.

    Args:
        record: what was measured.
        bar: what it must reach.
        value: the measured ratio, share, extra or count.
        met: whether it does; None if the rival was stopped too early to tell.
        floor: whether the value is only known to be at least that large.
    """

    record: Record
    bar: Bar
    value: float
    met: bool | None
    floor: bool = False

    @property
    def text(self) -> str:
        """The value in words."""
        if self.value == inf:
            return "nobody else solves it" if self.met else "not solved"
        if self.bar.kind == "count":
            return f"{self.value / 1e9:.2f} GB" if self.record.unit == "B" else f"{self.value:g}"
        if self.bar.kind in ("least", "bandwidth"):
            return f"{self.value:.1%}"
        if self.bar.kind == "extra":
            return f"{self.value * 1e6:+.1f} µs"
        return f"{'> ' if self.floor else ''}{times(self.value)}"


def verdicts(records: Iterable[Record], bars: Iterable[Bar]) -> list[Verdict]:
    """Set every record beside the bars that concern it.

    Args:
        records: what was measured.
        bars: of the topic.

    Returns:
        Verdicts in the order of the records; none for a rival that took no part.
    """
    bars = tuple(bars)
    judged = (judge(r, bar) for r in records for bar in bars if bar.concerns(r))
    return [verdict for verdict in judged if verdict]


def judge(record: Record, bar: Bar) -> Verdict | None:
    """Set a record beside a bar.

    Args:
        record: what was measured.
        bar: one that concerns it.

    Returns:
        The verdict; None if no rival of the bar took part.
    """
    own = record.measured[record.subject].median if record.subject in record.measured else inf
    if bar.kind == "count":
        return Verdict(record, bar, own, own <= bar.bound)
    if bar.kind == "least":
        return Verdict(record, bar, own, own >= bar.bound)
    if bar.kind == "ratio":
        return _ratio(record, bar)
    if bar.kind == "bandwidth":
        (rival,) = bar.against
        share = record.bandwidth(record.subject) / record.bandwidth(rival)
        return Verdict(record, bar, share, share >= bar.bound)
    theirs = [record.measured[name].median for name in bar.against if name in record.measured]
    if not theirs:
        return None
    value = own / min(theirs) if bar.kind == "share" else own - min(theirs)
    return Verdict(record, bar, value, value <= bar.bound)


def _ratio(record: Record, bar: Bar) -> Verdict | None:
    solved = record.subject in record.measured
    values = [v for name in bar.against if (v := _slower(record, name)) is not None]
    if not values:
        return None
    if not solved:
        return Verdict(record, bar, 0.0, False)
    value, floor = min(values)
    if value >= bar.bound:
        return Verdict(record, bar, value, True, floor)
    exact = [v for v, is_floor in values if not is_floor and v < bar.bound]
    if exact:
        return Verdict(record, bar, min(exact), False)
    return Verdict(record, bar, value, None, True)


def _slower(record: Record, rival: str) -> tuple[float, bool] | None:
    """The rival's time over ours and whether it is only a floor; None if it took no part."""
    if record.subject not in record.measured:
        took_part = rival in record.measured or rival in record.floors
        return (0.0, rival in record.floors) if took_part else _without_time(record, rival)
    if rival in record.measured:
        return record.ratios[rival].median, False
    if rival in record.floors:
        return record.floors[rival] / record.measured[record.subject].median, True
    return _without_time(record, rival)


def _without_time(record: Record, rival: str) -> tuple[float, bool] | None:
    reason = record.skipped.get(rival, "")
    if reason.startswith(STOPPED):
        return 0.0, True
    return (inf, False) if reason.startswith((GAVE_UP, FAILED)) else None
