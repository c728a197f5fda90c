"""What the layers must reach: the verbs, the layer, a call, its memory and the train step.

A bar holds at every shape and number of threads that the bench measures.
"""

from collections.abc import Iterable

from bench.harness import bars as harness
from bench.harness.bars import Bar, Kind, Verdict
from bench.harness.record import GOSSAMER, Record
from bench.layers.cases import (
    CALL_PATTERN,
    DECODING,
    DECODING_PATTERN,
    NN_LINEAR,
    SHAPES,
    SPARSEPROP,
    STATE_PATTERNS,
)

FORWARD, BOTH = "forward", "forward + backward"
SPMM, SPMM_T, SDDMM = "spmm", "spmm_t", "sddmm"
CALL, CALL_GRAD = "call", "call with grad"
STATE, TRAIN_STEP = "training state", "train step"
FLOAT32 = f"{GOSSAMER} float32"
DENSE = "dense"

_TABLE = {
    "2:4:v4": (1.75, 1.6), "1:4:v4": (3.0, 2.8), "1:8:v4": (5.2, 5.0), "1:16:v4": (8.5, 8.0),
    "2:4": (1.4, 1.35), "75%": (2.4, 2.3), "90%": (4.6, 4.3), "95%": (7.3, 7.0),
    "98%": (12.0, 12.0),
}  # fmt: skip
_SPARSEPROP = {
    "50%": (2.6, 2.5), "75%": (2.6, 2.5), "90%": (2.6, 2.5), "95%": (2.6, 2.5), "98%": (2.0, 2.5),
}  # fmt: skip
# bfloat16, forward + backward, on a processor that multiplies pairs of bfloat16.
_HALF = {
    "2:4:v4": 1.5, "1:4:v4": 3.0, "1:8:v4": 4.8, "90%": 2.8, "90%:v4": 6.0, "block 16x16 90%": 6.0,
}  # fmt: skip
_LAYERS = tuple(map(str, SHAPES))


def _bar(
    topic: str,
    pattern: str,
    rival: str,
    bound: float,
    kind: Kind = "ratio",
    shapes: tuple[str, ...] = (),
    dtype: str = "float32",
) -> Bar:
    return Bar(topic, (rival,), bound, kind, (pattern,) if pattern else (), shapes, dtype)


BARS: tuple[Bar, ...] = (
    *(
        _bar(topic, pattern, rival, bound, shapes=_LAYERS)
        for rival, table in ((NN_LINEAR, _TABLE), (SPARSEPROP, _SPARSEPROP))
        for pattern, bounds in table.items()
        for topic, bound in zip((FORWARD, BOTH), bounds, strict=True)
    ),
    _bar(FORWARD, DECODING_PATTERN, NN_LINEAR, 1.7, shapes=(str(DECODING),)),
    _bar(CALL, CALL_PATTERN, NN_LINEAR, 20e-6, "extra"),
    _bar(CALL_GRAD, CALL_PATTERN, NN_LINEAR, 20e-6, "extra"),
    *(
        _bar(BOTH, pattern, NN_LINEAR, bound, shapes=_LAYERS, dtype="bfloat16")
        for pattern, bound in _HALF.items()
    ),
    _bar(FORWARD, "", FLOAT32, 0.8, dtype="bfloat16"),
    _bar(BOTH, "", FLOAT32, 0.8, dtype="bfloat16"),
    _bar(STATE, STATE_PATTERNS[0], NN_LINEAR, 0.55, "share"),
    _bar(TRAIN_STEP, "", DENSE, 1.0),
)


def verdicts(records: Iterable[Record]) -> list[Verdict]:
    """Set every record beside the bars that concern it.

    Args:
        records: what was measured.

    Returns:
        A verdict for each pair, in the order of the records.
    """
    return harness.verdicts(records, BARS)
