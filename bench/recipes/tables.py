"""Tables of the recipes' steps: times, training state and the bars."""

from collections.abc import Sequence

from bench.harness.bars import Verdict, verdicts
from bench.harness.machine import honest_notes
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
from bench.recipes.steps import BARS, DENSE, STATE, STEP, TWIN


def page(results: Results) -> Page:
    """Lay out the results of a run."""
    judged = verdicts(results.records, BARS)
    bars = [
        [Cell(v.record.pattern), Cell(str(v.record.threads)), Cell(v.bar.words), verdict_cell(v)]
        for v in judged
    ]
    tables = [
        _grid("milliseconds of a step (times Gossamer's)", STEP, results.records),
        _grid("training state in MiB (times Gossamer's)", STATE, results.records),
        Grid("bars", ["recipe", "threads", "bar", "measured"], bars),
    ]
    lines = [
        f"{machine_line(results)}; Gossamer's instruction set: {results.machine['isa']}",
        versions_line(results),
        "a step is loss, gradients, clipping, AdamW and the recipe's own work; medians of "
        "interleaved steps; SR-STE and its twin were first compared",
        *shortcomings(results),
        *(note for note in honest_notes(results.machine) if "SparseProp" not in note),
        *(f"ERROR {error}" for error in results.errors),
    ]
    return Page([table for table in tables if table.rows], lines, tally(judged, _words))


def _words(verdict: Verdict) -> str:
    r = verdict.record
    return f"{r.pattern}, threads: {r.threads}: {verdict.bar.words}: {verdict.text}"


def _grid(title: str, topic: str, records: Sequence[Record]) -> Grid:
    scale = 1e3 if topic == STEP else 2**-20
    rows = []
    for r in (record for record in records if record.topic == topic):
        texts = [r.pattern, r.shape.replace("x", "×"), str(r.threads)]
        for name in (GOSSAMER, DENSE, TWIN):
            ratio = f" ({r.ratios[name].median:.2f}×)" if name in r.ratios else ""
            texts.append(f"{r.measured[name].median * scale:.1f}{ratio}")
        rows.append([Cell(text) for text in texts])
    return Grid(title, ["recipe", "model", "threads", GOSSAMER, DENSE, TWIN], rows)
