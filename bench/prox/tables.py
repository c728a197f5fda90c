"""Tables of the proximal part: times, how many times faster, and the bars."""

from collections.abc import Sequence

from bench.harness.bars import Verdict
from bench.harness.record import GOSSAMER, Record
from bench.harness.results import Results
from bench.harness.tables import (
    Cell,
    Grid,
    Page,
    machine_line,
    shortcomings,
    tally,
    verdict_cell,
    versions_line,
)
from bench.harness.words import brief, times
from bench.prox.bars import (
    COUNT,
    ELEMENTS,
    FEWER,
    GROWTH,
    MODOPT,
    NUMPY,
    NUMPY_EQUAL,
    PASSES,
    PYPROXIMAL,
    SCALE,
    SHRUNK,
    TOPICS,
    verdicts,
)

DISTRIBUTIONS = ("modopt", "pyproximal")
ABSENT = "not installed"


def page(results: Results) -> Page:
    """Lay out the results of a run."""
    judged = verdicts(results.records)
    return Page(grids(results.records), describe(results), tally(judged, _words))


def grids(records: Sequence[Record]) -> list[Grid]:
    """Lay out everything that was measured.

    Args:
        records: of one run.

    Returns:
        Tables that have at least one row.
    """
    found = []
    for topic in TOPICS:
        chosen = [r for r in records if r.topic == topic]
        found.append(_passes(chosen) if topic == PASSES else _times(topic, chosen))
    found.append(_bars(verdicts(records)))
    return [grid for grid in found if grid.rows]


def _times(topic: str, records: Sequence[Record]) -> Grid:
    rivals = list(dict.fromkeys(name for r in records for name in (*r.measured, *r.skipped)))
    names = [GOSSAMER, *(name for name in rivals if name != GOSSAMER)]
    rows = []
    for record in records:
        entries = [Cell(_entry(record, name)) for name in names]
        rows.append([*_where(record), *entries])
    return Grid(topic, ["what", "size", "dtype", "threads", *names], rows)


def _where(record: Record) -> list[Cell]:
    size = record.shape.replace("x", "×")
    return [Cell(text) for text in (record.pattern, size, record.dtype, str(record.threads))]


def _entry(record: Record, name: str) -> str:
    if name not in record.measured:
        reason = record.skipped.get(name, "")
        return f"– ({reason})" if name in record.floors else "–"
    compared = f" ({times(record.ratios[name].median)})" if name in record.ratios else ""
    mark = "~" if record.unsteady and name == GOSSAMER else ""
    if name in (GOSSAMER, SCALE) and record.topic == ELEMENTS:
        compared += f", {bandwidth(record, name) / 1e9:.3g} GB/s"
    return brief(record.measured[name].median) + compared + mark


def bandwidth(record: Record, name: str) -> float:
    """Bytes per second that an operator in place reads and writes.

    Args:
        record: of single entries.
        name: of an entrant.

    Returns:
        Each entry read once and written once, over the median time.
    """
    size = 8 if record.dtype == "float64" else 4
    return 2 * size * int(record.shape) / record.measured[name].median


def _passes(records: Sequence[Record]) -> Grid:
    rows = [[*_where(r), Cell(f"{r.measured[GOSSAMER].median:g}")] for r in records]
    return Grid(PASSES, ["what", "groups", "dtype", "threads", COUNT], rows)


def _bars(judged: Sequence[Verdict]) -> Grid:
    rows = [
        [Cell(v.record.topic), *_where(v.record), Cell(v.bar.words), verdict_cell(v)]
        for v in judged
    ]
    return Grid("bars", ["topic", "what", "size", "dtype", "threads", "bar", "measured"], rows)


def describe(results: Results) -> list[str]:
    """Say what the results were measured on and with, and what they do not show.

    Args:
        results: of one run.

    Returns:
        Lines.
    """
    lines = [
        f"{machine_line(results)}; Gossamer's instruction set: {results.machine['isa']}",
        versions_line(results),
        "medians of interleaved rounds, times Gossamer's in brackets; each call starts from the "
        "same numbers, which are put back outside of its time; every answer was first compared "
        "with the formula in float64",
        f"{NUMPY}: any weights and costs, as Gossamer's operator; {NUMPY_EQUAL}: a shortcut that "
        "only equal ones allow, and has no bar",
        f"{MODOPT} and {PYPROXIMAL} know no groups: they are given single entries; "
        f"{PYPROXIMAL}'s envelope is the unbiased form",
        f"{SHRUNK}: a threshold that ignores AdamW's metric, so a cheaper and another method",
        f"{GROWTH}: beside {FEWER} of the groups",
        *shortcomings(results),
    ]
    if unsteady := sum(record.unsteady for record in results.records):
        lines.append(
            f"{unsteady} of {len(results.records)} measurements were disturbed (marked ~): "
            "quartiles more than a fifth of the median apart."
        )
    absent = {f"{who}: {why}" for r in results.records for who, why in r.skipped.items()}
    lines += sorted(line for line in absent if ABSENT in line)
    return [*lines, *(f"ERROR {error}" for error in results.errors)]


def _words(verdict: Verdict) -> str:
    r = verdict.record
    where = f"{r.topic}, {r.pattern}, {r.shape}, {r.dtype}, threads: {r.threads}"
    return f"{where}: {verdict.bar.words}: {verdict.text}"
