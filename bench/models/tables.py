"""Tables of the models: seconds of a step, times faster than dense, and the bars."""

from bench.harness.bars import verdicts
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
    versions_line,
)
from bench.harness.words import brief, times
from bench.models.gpt2 import BARS, BFLOAT16, DENSE, FREE, LIBRARY


def page(results: Results) -> Page:
    """Lay out the results of a run."""
    judged = verdicts(results.records, BARS)
    by_key = {verdict.record.key: verdict for verdict in judged}
    limits = {_kind(r): r.measured for r in results.records if FREE in r.measured}
    rows = []
    for record in results.records:
        verdict = by_key.get(record.key)
        ours, dense = (brief(record.measured[name].median) for name in (GOSSAMER, DENSE))
        faster = times(record.ratios[DENSE].median) + ("~" if record.unsteady else "")
        texts = [*_where(record), ours, dense]
        bar = Cell(verdict.bar.words if verdict else "–")
        limit = limits.get(_kind(record))
        most = times(limit[DENSE].median / limit[FREE].median) if limit else "–"
        met = verdict.met if verdict else None
        rows.append([*map(Cell, texts), Cell(faster, met), Cell(most), bar])
    headings = [
        "pattern", "model", "dtype", "threads", "Gossamer", "dense", "faster", "at most", "bar",
    ]  # fmt: skip
    tables = [Grid("a training step", headings, rows)] if rows else []
    return Page(
        tables, _lines(results), tally(judged, lambda v: f"{', '.join(_where(v.record))}: {v.text}")
    )


def _kind(record: Record) -> tuple[str, str, int]:
    return record.shape, record.dtype, record.threads


def _where(record: Record) -> list[str]:
    return [record.pattern, record.shape.replace("x", "×"), record.dtype, str(record.threads)]


def _lines(results: Results) -> list[str]:
    machine = results.machine
    lines = [
        f"{machine_line(results)}; Gossamer's instruction set: {machine['isa']}; "
        f"torch's own kernels: {machine['torch_capability']}",
        versions_line(results),
        "GPT-2 of transformers with random weights: loss, gradients and fused AdamW; embeddings "
        "and head stay dense; medians of interleaved steps; logits were first compared with those "
        "of the densified model; at most: dense beside the same step whose sparse layers cost "
        "nothing",
    ]
    if LIBRARY not in machine["versions"]:
        lines.append(f"{LIBRARY} is not installed: nothing was measured.")
    if not any(record.dtype == BFLOAT16 for record in results.records):
        lines.append(
            "bfloat16 was not measured: this processor has no instructions that multiply it."
        )
    notes = [note for note in honest_notes(machine) if "SparseProp" not in note]
    return [*lines, *shortcomings(results), *notes, *(f"ERROR {e}" for e in results.errors)]
