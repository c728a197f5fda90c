"""Tables of sparse activations: milliseconds of each form, and how many times the dense network."""

from collections.abc import Sequence

from bench.activations import jobs
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

_HEADINGS = ["what", "tokens × d × hidden", "live", "dtype", "threads"]


def page(results: Results) -> Page:
    """Lay out the results of a run."""
    judged = verdicts(results.records, jobs.bars())
    lines = [
        f"{machine_line(results)}; Gossamer's instruction set: {results.machine['isa']}",
        versions_line(results),
        "gated networks; `gossamer` is the layer in the form that it chose, whose gate is dense, "
        "float32 or int8; every result was first compared with torch's",
        *shortcomings(results),
        *(f"ERROR {error}" for error in results.errors),
    ]
    summary = tally(judged, lambda v: f"{', '.join(_where(v.record))}: {v.bar.words}: {v.text}")
    return Page(grids(results.records, judged), lines, summary)


def grids(records: Sequence[Record], judged: Sequence[Verdict]) -> list[Grid]:
    """Lay out everything that was measured.

    Args:
        records: of one run.
        judged: their verdicts.

    Returns:
        Tables that have at least one row.
    """
    rows = [
        [*map(Cell, _where(r)), Cell(brief(r.measured[GOSSAMER].median) + "~" * r.unsteady),
         Cell(f"{rival} {brief(r.measured[rival].median)}"), Cell(times(r.ratios[rival].median))]
        for r in records
        for rival in r.measured
        if rival != GOSSAMER
    ]  # fmt: skip
    bars = [[*map(Cell, _where(v.record)), Cell(v.bar.words), verdict_cell(v)] for v in judged]
    found = [
        Grid("times", [*_HEADINGS, "gossamer", "other", "takes"], rows),
        Grid("bars", [*_HEADINGS, "bar", "measured"], bars),
    ]
    return [grid for grid in found if grid.rows]


def _where(record: Record) -> list[str]:
    size = record.shape.replace("x", "×")
    return [record.topic, size, record.pattern, record.dtype, str(record.threads)]
