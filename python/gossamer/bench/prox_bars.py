"""What the proximal operators must reach, and whether a record does.

A bar holds with every number of threads that the bench measures.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from gossamer.bench.results import Record

# Topics.
GAINS, GROUPED, ENTRIES = "WGSEF, norms to gains", "WGSEF, in place", "WGSEF of single entries"
PASSES, GROWTH = "WGSEF, passes over the norms", "WGSEF, ten times the groups"
ELEMENTS, SELECTION, STEP = "elementwise", "selection", "optimizer step"
TOPICS = (GAINS, GROUPED, ENTRIES, PASSES, GROWTH, ELEMENTS, SELECTION, STEP)

# Who takes part.
NUMPY, NUMPY_EQUAL = "NumPy, breakpoints sorted", "NumPy, equal weights: norms sorted"
MODOPT, PYPROXIMAL = "ModOpt", "pyproximal"
SCALE, EAGER = "torch x.mul_", "eager torch"
NUMPY_SORT, TORCH_SORT = "NumPy sort", "torch sort"
FUSED, PLAIN, SHRUNK = "AdamW(fused=True)", "without a penalty", "AdamW(fused=True), softshrink"
FEWER = "a tenth"
# What a record of passes is counted in.
COUNT = "passes"

# How the two forms of WGSEF are told apart in a record.
CONVEX, UNBIASED = "convex", "unbiased"

Kind = Literal["ratio", "share", "count"]


@dataclass(frozen=True)
class Bar:
    """A bound on records.

    Args:
        topic: of the records it is for.
        against: the rival; "" for a count.
        bound: the value.
        kind: ``"ratio"``: rival / subject >= bound; ``"share"``: subject / rival <= bound;
            ``"count"``: subject <= bound.
        patterns: of those records, how they begin; empty for any.
        shapes: texts of the shapes it is for; empty for any.
        words: what must hold.
    """

    topic: str
    against: str
    bound: float
    kind: Kind
    words: str
    patterns: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()

    def concerns(self, record: Record) -> bool:
        """Whether this bar is for a record."""
        return (
            record.topic == self.topic
            and (not self.patterns or record.pattern.startswith(self.patterns))
            and (not self.shapes or record.shape in self.shapes)
        )


@dataclass(frozen=True)
class Verdict:
    """A record set beside a bar.

    Args:
        record: what was measured.
        bar: what it must reach.
        value: the measured ratio, share or count.
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
        if self.bar.kind == "count":
            return f"{self.value:g}"
        return f"{'> ' if self.floor else ''}{times(self.value)}"


def times(value: float) -> str:
    """A ratio in words.

    Example:
        >>> times(0.8123), times(12.34), times(1234.5)
        ('0.812×', '12.3×', '1234×')
    """
    return f"{value:.0f}×" if value >= 100 else f"{value:.3g}×"


_MILLION = ("1000000",)
_LARGE = ("10000000",)

BARS: tuple[Bar, ...] = (
    Bar(PASSES, "", 12, "count", "at most 12 passes"),
    Bar(GROWTH, FEWER, 13, "share", "10⁶ groups take ≤ 13× of 10⁵", shapes=_MILLION),
    Bar(GAINS, NUMPY, 10, "ratio", f"≥ 10× faster than {NUMPY}", shapes=_MILLION),
    Bar(GROUPED, NUMPY, 10, "ratio", f"≥ 10× faster than {NUMPY}", shapes=("1000000x8",)),
    Bar(ENTRIES, MODOPT, 10, "ratio", f"≥ 10× faster than {MODOPT}", (CONVEX,), _MILLION),
    Bar(
        ENTRIES, PYPROXIMAL, 10, "ratio", f"≥ 10× faster than {PYPROXIMAL}", (UNBIASED,), _MILLION
    ),
    Bar(ELEMENTS, SCALE, 0.6, "ratio", f"≥ 60 % of {SCALE}'s bandwidth", ("l1", "l0"), _LARGE),
    Bar(ELEMENTS, EAGER, 5, "ratio", f"≥ 5× faster than {EAGER}", ("lp",), _LARGE),
    Bar(STEP, FUSED, 1.25, "share", f"≤ 1.25× of {FUSED}"),
)  # fmt: skip


def verdicts(records: Iterable[Record]) -> list[Verdict]:
    """Set every record beside the bars that concern it.

    Args:
        records: of the proximal part.

    Returns:
        Verdicts in the order of the records; none for a rival that is absent or was wrong.
    """
    judged = (_judge(r, bar) for r in records for bar in BARS if bar.concerns(r))
    return [verdict for verdict in judged if verdict]


def _judge(record: Record, bar: Bar) -> Verdict | None:
    own = record.measured[record.subject].median
    if bar.kind == "count":
        return Verdict(record, bar, own, own <= bar.bound)
    if bar.against in record.floors:
        value = record.floors[bar.against] / own
        return Verdict(record, bar, value, value >= bar.bound or None, floor=True)
    if bar.against not in record.measured:
        return None
    if bar.kind == "share":
        value = own / record.measured[bar.against].median
        return Verdict(record, bar, value, value <= bar.bound)
    value = record.ratios[bar.against].median
    return Verdict(record, bar, value, value >= bar.bound)
