"""Tables of the mask kernels: times, shares of bandwidth and of the optimum, and the bars."""

from collections.abc import Sequence

from bench.harness.bars import Verdict, verdicts
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
from bench.masks import changes, making, selection, tiles

BARS = (*selection.BARS, *tiles.BARS, *making.BARS, *changes.BARS)


def page(results: Results) -> Page:
    """Lay out the results of a run."""
    judged = verdicts(results.records, BARS)
    summary = tally(judged, lambda v: f"{', '.join(_where(v.record))}: {_words(v)}")
    return Page(grids(results.records, judged), _lines(results), summary)


def grids(records: Sequence[Record], judged: Sequence[Verdict]) -> list[Grid]:
    """Lay out everything that was measured.

    Args:
        records: of one run.
        judged: their verdicts.

    Returns:
        Tables that have at least one row.
    """
    headings = ["kernel", "size", "pattern", "threads"]
    timed = [r for r in records if r.unit == "s"]
    rows = [
        [*map(Cell, _where(r)), *map(Cell, _times(r, rival))]
        for r in timed
        for rival in r.measured
        if rival != GOSSAMER
    ]
    shares = [
        [*map(Cell, _where(r)), Cell(f"{r.measured[GOSSAMER].median:.2%}")]
        for r in records
        if r.unit != "s"
    ]
    bars = [[*map(Cell, _where(v.record)), Cell(v.bar.words), verdict_cell(v)] for v in judged]
    found = [
        Grid("times", [*headings, "Gossamer", "rival", "compared"], rows),
        Grid("share of the optimum", [*headings, "kept"], shares),
        Grid("bars", [*headings, "bar", "measured"], bars),
    ]
    return [grid for grid in found if grid.rows]


def _where(record: Record) -> list[str]:
    size = record.shape.replace("x", "×")
    return [record.topic, size, record.pattern, str(record.threads)]


def _times(record: Record, rival: str) -> list[str]:
    compared = f"{times(record.ratios[rival].median)} faster"
    if record.moved:
        own, theirs = (record.bandwidth(name) / 1e9 for name in (GOSSAMER, rival))
        compared = f"{own:.3g} of {theirs:.3g} GB/s"
    mark = "~" if record.unsteady else ""
    own_time, their_time = (brief(record.measured[name].median) for name in (GOSSAMER, rival))
    return [own_time + mark, f"{rival} {their_time}", compared]


def _words(verdict: Verdict) -> str:
    return f"{verdict.bar.words}: {verdict.text}"


def _lines(results: Results) -> list[str]:
    return [
        f"{machine_line(results)}; Gossamer's instruction set: {results.machine['isa']}",
        versions_line(results),
        "float32; medians of interleaved rounds; outputs of a selection are reused, as in training",
        "as published: seconds of the literature, on another machine",
        *shortcomings(results),
        *(f"ERROR {error}" for error in results.errors),
    ]
