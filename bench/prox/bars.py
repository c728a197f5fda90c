"""What the proximal operators must reach.

A bar holds with every number of threads that the bench measures.
"""

from collections.abc import Iterable

from bench.harness import bars as harness
from bench.harness.bars import Bar, Verdict
from bench.harness.record import Record

# Topics.
GAINS, GROUPED, ENTRIES = "WGSEF, norms to gains", "WGSEF, in place", "WGSEF of single entries"
PASSES, GROWTH = "WGSEF, passes over the norms", "WGSEF, ten times the groups"
ELEMENTS, SELECTION, STEP = "elementwise", "selection", "optimizer step"
TOPICS = (GAINS, GROUPED, ENTRIES, PASSES, GROWTH, ELEMENTS, SELECTION, STEP)

# Rivals.
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

_MILLION = ("1000000",)
_LARGE = ("10000000",)

BARS: tuple[Bar, ...] = (
    Bar(PASSES, (), 12, "count", words="at most 12 passes"),
    Bar(GROWTH, (FEWER,), 13, "share", shapes=_MILLION, words="10⁶ groups take ≤ 13× of 10⁵"),
    Bar(GAINS, (NUMPY,), 10, shapes=_MILLION, words=f"≥ 10× faster than {NUMPY}"),
    Bar(GROUPED, (NUMPY,), 10, shapes=("1000000x8",), words=f"≥ 10× faster than {NUMPY}"),
    Bar(
        ENTRIES, (MODOPT,), 10, patterns=(CONVEX,), shapes=_MILLION,
        words=f"≥ 10× faster than {MODOPT}",
    ),
    Bar(
        ENTRIES, (PYPROXIMAL,), 10, patterns=(UNBIASED,), shapes=_MILLION,
        words=f"≥ 10× faster than {PYPROXIMAL}",
    ),
    Bar(
        ELEMENTS, (SCALE,), 0.6, patterns=("l1", "l0"), shapes=_LARGE,
        words=f"≥ 60 % of {SCALE}'s bandwidth",
    ),
    Bar(
        ELEMENTS, (EAGER,), 5, patterns=("lp, *",), shapes=_LARGE,
        words=f"≥ 5× faster than {EAGER}",
    ),
    Bar(STEP, (FUSED,), 1.25, "share", words=f"≤ 1.25× of {FUSED}"),
)  # fmt: skip


def verdicts(records: Iterable[Record]) -> list[Verdict]:
    """Set every record beside the bars that concern it.

    Args:
        records: of the proximal part.

    Returns:
        Verdicts in the order of the records; none for a rival that is absent or was wrong.
    """
    return harness.verdicts(records, BARS)
