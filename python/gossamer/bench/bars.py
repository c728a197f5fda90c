"""What the engine must reach, and whether a record does.

A bar holds at every shape and number of threads that the bench measures.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from gossamer.bench.cases import (
    CALL_PATTERN,
    DECODING,
    DECODING_PATTERN,
    GOSSAMER,
    NN_LINEAR,
    SHAPES,
    SPARSEPROP,
    STATE_PATTERNS,
)
from gossamer.bench.results import Record

FORWARD, BOTH = "forward", "forward + backward"
SPMM, SPMM_T, SDDMM = "spmm", "spmm_t", "sddmm"
CALL, CALL_GRAD = "call", "call with grad"
STATE, TRAIN_STEP = "training state", "train step"
FLOAT32 = f"{GOSSAMER} float32"
DENSE = "dense"

Kind = Literal["ratio", "share", "extra"]


@dataclass(frozen=True)
class Bar:
    """One bound on a record.

    Args:
        topic: of the records it is for.
        pattern: of those records; "" for any.
        against: the rival.
        bound: the value.
        kind: ``"ratio"``: rival / subject >= bound; ``"share"``: subject / rival <= bound;
            ``"extra"``: subject - rival <= bound, in the record's unit.
        shapes: texts of the shapes it is for; empty for any.
        dtype: of the records.
    """

    topic: str
    pattern: str
    against: str
    bound: float
    kind: Kind = "ratio"
    shapes: tuple[str, ...] = ()
    dtype: str = "float32"

    def concerns(self, record: Record) -> bool:
        """Whether this bar is for a record and its rival was measured."""
        return (
            record.topic == self.topic
            and self.pattern in ("", record.pattern)
            and (not self.shapes or record.shape in self.shapes)
            and record.dtype == self.dtype
            and self.against in record.ratios
        )


@dataclass(frozen=True)
class Verdict:
    """A record set beside a bar.

    Args:
        record: what was measured.
        bar: what it must reach.
        value: the measured ratio, share or extra.
        met: whether it does.
    """

    record: Record
    bar: Bar
    value: float
    met: bool


_TABLE = {
    "2:4:v4": (1.75, 1.6), "1:4:v4": (3.0, 2.8), "1:8:v4": (5.2, 5.0), "1:16:v4": (8.5, 8.0),
    "2:4": (1.4, 1.35), "75%": (2.4, 2.3), "90%": (4.6, 4.3), "95%": (7.3, 7.0),
    "98%": (12.0, 12.0),
}  # fmt: skip
_SPARSEPROP = {
    "50%": (2.6, 2.5), "75%": (2.6, 2.5), "90%": (2.6, 2.5), "95%": (2.6, 2.5), "98%": (2.0, 2.5),
}  # fmt: skip
_LAYERS = tuple(map(str, SHAPES))

BARS: tuple[Bar, ...] = (
    *(
        Bar(topic, pattern, rival, bound, shapes=_LAYERS)
        for rival, table in ((NN_LINEAR, _TABLE), (SPARSEPROP, _SPARSEPROP))
        for pattern, bounds in table.items()
        for topic, bound in zip((FORWARD, BOTH), bounds, strict=True)
    ),
    Bar(FORWARD, DECODING_PATTERN, NN_LINEAR, 1.7, shapes=(str(DECODING),)),
    Bar(CALL, CALL_PATTERN, NN_LINEAR, 20e-6, "extra"),
    Bar(CALL_GRAD, CALL_PATTERN, NN_LINEAR, 20e-6, "extra"),
    Bar(FORWARD, "", FLOAT32, 0.8, dtype="bfloat16"),
    Bar(BOTH, "", FLOAT32, 0.8, dtype="bfloat16"),
    Bar(STATE, STATE_PATTERNS[0], NN_LINEAR, 0.55, "share"),
    Bar(TRAIN_STEP, "", DENSE, 1.0),
)


def verdicts(records: Iterable[Record]) -> list[Verdict]:
    """Set every record beside the bars that concern it.

    Args:
        records: what was measured.

    Returns:
        A verdict for each pair, in the order of the records.
    """
    return [_judge(record, bar) for record in records for bar in BARS if bar.concerns(record)]


def _judge(record: Record, bar: Bar) -> Verdict:
    own, rival = record.measured[record.subject].median, record.measured[bar.against].median
    if bar.kind == "ratio":
        value = rival / own
        return Verdict(record, bar, value, value >= bar.bound)
    value = own / rival if bar.kind == "share" else own - rival
    return Verdict(record, bar, value, value <= bar.bound)
