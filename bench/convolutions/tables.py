"""Tables of the convolutions: times, times faster than each rival, and the bars."""

from bench.convolutions.cases import BARS, BOTH, DENSE, MEMORY, SPARSEPROP
from bench.harness.bars import Verdict, verdicts
from bench.harness.machine import honest_notes
from bench.harness.record import GOSSAMER, Key, Record
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


def page(results: Results) -> Page:
    """Lay out the results of a run."""
    judged = verdicts(results.records, BARS)
    by_key = {(v.record.key, v.bar.against[0]): v for v in judged}
    layers, halves = (
        [_layer(r, by_key) for r in results.records if r.topic == BOTH and r.dtype == dtype]
        for dtype in ("float32", "bfloat16")
    )
    steps = [_step(r, by_key) for r in results.records if r.topic != BOTH]
    headings = ["pattern", "images", "threads", "Gossamer", "GF/s", DENSE, "faster"]
    grids = [
        Grid("forward + backward of one convolution", [*headings, "than SparseProp"], layers),
        Grid(
            "the same in bfloat16, beside torch's in bfloat16",
            headings,
            [row[: len(headings)] for row in halves],
        ),
        Grid(
            "a training step of a ResNet-18",
            ["pattern", "what", "threads", "Gossamer", "dense", "compared"],
            steps,
        ),
    ]
    return Page([grid for grid in grids if grid.rows], _lines(results), tally(judged, _words))


def _layer(record: Record, judged: dict[tuple[Key, str], Verdict]) -> list[Cell]:
    texts = [
        record.pattern,
        record.shape.replace("x", "×"),
        str(record.threads),
        brief(record.measured[GOSSAMER].median),
        f"{record.gflops:.0f}",
        brief(record.measured[DENSE].median),
    ]
    return [*map(Cell, texts), *(_faster(record, rival, judged) for rival in (DENSE, SPARSEPROP))]


def _faster(record: Record, rival: str, judged: dict[tuple[Key, str], Verdict]) -> Cell:
    if rival not in record.ratios:
        return Cell("–")
    verdict = judged.get((record.key, rival))
    text = times(record.ratios[rival].median) + ("~" if record.unsteady else "")
    return Cell(text, verdict.met if verdict else None)


def _step(record: Record, judged: dict[tuple[Key, str], Verdict]) -> list[Cell]:
    ours, dense = (record.measured[name].median for name in (GOSSAMER, DENSE))
    verdict = judged.get((record.key, DENSE))
    if record.topic == MEMORY:
        amounts = [f"{ours / 1e6:.0f} MB", f"{dense / 1e6:.0f} MB"]
        compared = Cell(f"{ours / dense:.2f} of it", verdict.met if verdict else None)
    else:
        amounts = [brief(ours), brief(dense)]
        compared = _faster(record, DENSE, judged)
    texts = [record.pattern, record.topic, str(record.threads), *amounts]
    return [*map(Cell, texts), compared]


def _words(verdict: Verdict) -> str:
    record = verdict.record
    where = f"{record.topic}, {record.shape}, {record.pattern}, {record.threads} threads"
    return f"{where}: {verdict.value:.2f} to {verdict.bar.against[0]}, bar {verdict.bar.bound:g}"


def _lines(results: Results) -> list[str]:
    machine = results.machine
    return [
        f"{machine_line(results)}; Gossamer's instruction set: {machine['isa']}; "
        f"torch's own kernels: {machine['torch_capability']}",
        versions_line(results),
        "images × channels × side; float32 where nothing else is said; medians of interleaved "
        "rounds; every result was first compared with torch's convolution of the masked weight, in "
        "float32. SparseProp is the faster of its two loops. Memory is the growth of a process "
        "over three steps.",
        *shortcomings(results),
        *honest_notes(machine),
        *sorted({f"{who}: {why}" for r in results.records for who, why in r.skipped.items()}),
        *(f"ERROR {error}" for error in results.errors),
    ]
