"""The table of the modules: seconds, times faster than dense, and the bars."""

from bench.harness.bars import verdicts
from bench.harness.machine import honest_notes
from bench.harness.record import GOSSAMER
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
from bench.weights.jobs import BARS, DENSE, TOPIC


def page(results: Results) -> Page:
    """Lay out the results of a run."""
    judged = verdicts(results.records, BARS)
    by_key = {verdict.record.key: verdict for verdict in judged}
    rows = []
    for record in results.records:
        verdict = by_key.get(record.key)
        ours, dense = (brief(record.measured[name].median) for name in (GOSSAMER, DENSE))
        texts = [record.pattern, record.shape, str(record.threads), ours, dense]
        faster = times(record.ratios[DENSE].median) + ("~" if record.unsteady else "")
        rows.append([*map(Cell, texts), Cell(faster, verdict.met if verdict else None)])
    headings = ["pattern", "module", "threads", "Gossamer", "dense", "faster"]
    grids = [Grid(TOPIC, headings, rows)] if rows else []
    machine = results.machine
    notes = [note for note in honest_notes(machine) if "SparseProp" not in note]
    lines = [
        f"{machine_line(results)}; Gossamer's instruction set: {machine['isa']}; "
        f"torch's own kernels: {machine['torch_capability']}",
        versions_line(results),
        "1,024 tokens, or 32 steps of 32 sequences; all weights sparse; float32; medians of "
        "interleaved rounds; outputs and gradients were first compared with those of the densified "
        "module; of the experts, each side runs in its fastest implementation of transformers",
        *shortcomings(results),
        *notes,
        *(f"ERROR {error}" for error in results.errors),
    ]
    return Page(grids, lines, tally(judged, lambda v: f"{v.record.shape}: {v.text}"))
