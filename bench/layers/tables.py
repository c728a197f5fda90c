"""Tables of the layers' bench: each ratio beside its bar."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bench.harness.bars import Verdict
from bench.harness.machine import honest_notes
from bench.harness.record import Record
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
from bench.harness.words import threads_text
from bench.layers.bars import (
    BOTH,
    CALL,
    CALL_GRAD,
    DENSE,
    FLOAT32,
    FORWARD,
    SDDMM,
    SPMM,
    SPMM_T,
    STATE,
    TRAIN_STEP,
    verdicts,
)
from bench.layers.cases import (
    DECODING,
    MASKED_DENSE,
    NN_LINEAR,
    SHAPES,
    SPARSEPROP,
    TORCH_CSR,
)

VERBS = (SPMM, SPMM_T, SDDMM)


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
    judged = {(v.record.key, *v.bar.against): v for v in verdicts(records)}
    layers = [r for r in records if r.dtype == "float32" and r.shape in set(map(str, SHAPES))]
    found = [
        _ratio_grid(f"{topic}: times faster than {rival}", layers, topic, rival, judged)
        for rival in (NN_LINEAR, SPARSEPROP, MASKED_DENSE, TORCH_CSR)
        for topic in (FORWARD, BOTH)
    ]
    half = [r for r in records if r.dtype == "bfloat16"]
    found += [
        _ratio_grid(
            f"bfloat16, {topic}: times faster than {NN_LINEAR}", half, topic, NN_LINEAR, judged
        )
        for topic in (FORWARD, BOTH)
    ]
    found += [_verb_grid(layers), _other_grid(records, judged)]
    return [grid for grid in found if grid.rows]


def _ratio_grid(
    title: str,
    records: Iterable[Record],
    topic: str,
    rival: str,
    judged: dict[Any, Verdict],
) -> Grid:
    chosen = [r for r in records if r.topic == topic and rival in r.ratios]

    def cell(record: Record) -> Cell:
        verdict = judged.get((record.key, rival))
        text = f"{record.ratios[rival].median:.2f}{'~' if record.unsteady else ''}"
        return Cell(text, verdict.met if verdict else None)

    def bar(pattern: str) -> Cell:
        bounds = {v.bar.bound for v in judged.values() if _is(v, topic, pattern, rival, chosen)}
        return Cell(f"{bounds.pop():g}" if bounds else "–")

    return _by_column(title, chosen, cell, bar)


def _is(verdict: Verdict, topic: str, pattern: str, rival: str, chosen: list[Record]) -> bool:
    record = verdict.record
    return (
        verdict.bar.against == (rival,)
        and (record.topic, record.pattern) == (topic, pattern)
        and record in chosen
    )


def _by_column(
    title: str,
    records: Sequence[Record],
    cell: Callable[[Record], Cell],
    bar: Callable[[str], Cell] | None = None,
) -> Grid:
    """One row a pattern, one column a shape and number of threads."""
    columns = list(dict.fromkeys((r.shape, r.threads) for r in records))
    patterns = list(dict.fromkeys(r.pattern for r in records))
    at = {(r.pattern, r.shape, r.threads): r for r in records}
    rows = []
    for pattern in patterns:
        found = [at.get((pattern, *column)) for column in columns]
        rows.append(
            [
                Cell(pattern),
                *([bar(pattern)] if bar else []),
                *(cell(record) if record else Cell("") for record in found),
            ]
        )
    headings = ["pattern", *(["bar"] if bar else [])]
    headings += [f"{_sizes(shape)}, {threads_text(threads)}" for shape, threads in columns]
    return Grid(title, headings, rows)


def _verb_grid(records: Iterable[Record]) -> Grid:
    by_verb = {(r.topic, *r.key[1:]): r for r in records if r.topic in VERBS}
    first = [r for r in by_verb.values() if r.topic == SPMM]

    def cell(record: Record) -> Cell:
        trio = [by_verb.get((verb, *record.key[1:])) for verb in VERBS]
        return Cell(" / ".join(f"{r.gflops:.0f}" if r else "–" for r in trio))

    grid = _by_column("useful GFLOP/s: spmm / spmm_t / sddmm", first, cell)
    return Grid(grid.title, grid.headings, [*grid.rows, *_dense_speed(first, by_verb)])


def _dense_speed(first: Sequence[Record], by_verb: dict[Any, Record]) -> list[list[Cell]]:
    """A row with the speed of torch's own products, which the verbs stand beside."""
    row = [Cell("dense (torch)")]
    for shape, threads in dict.fromkeys((r.shape, r.threads) for r in first):
        speeds = []
        for verb in VERBS:
            same = [r for key, r in by_verb.items() if key[0] == verb and r.shape == shape]
            same = [r for r in same if r.threads == threads and r.density > 0]
            gflops = [r.useful_flops / r.density / r.measured["torch"].median / 1e9 for r in same]
            speeds.append(sorted(gflops)[len(gflops) // 2] if gflops else math.nan)
        row.append(Cell(" / ".join(f"{speed:.0f}" for speed in speeds)))
    return [row] if first else []


def _other_grid(records: Iterable[Record], judged: dict[Any, Verdict]) -> Grid:
    rows = []
    for record in records:
        against = _main_rival(record)
        if against is None:
            continue
        verdict = judged.get((record.key, against))
        rows.append(
            [
                Cell(_what(record)),
                Cell(_amount(record, record.subject)),
                Cell(f"{against} {_amount(record, against)}"),
                Cell(
                    _compared(record, against, verdict) + ("~" if record.unsteady else ""),
                    verdict.met if verdict else None,
                ),
                Cell(_bound(verdict) if verdict else "–"),
            ]
        )
    headings = ["what", "Gossamer", "rival", "compared", "bar"]
    return Grid("batch 1, calls, bfloat16, memory, the train step", headings, rows)


def _what(record: Record) -> str:
    texts = [record.topic, _sizes(record.shape), record.pattern]
    if record.dtype != "float32":
        texts.append(record.dtype)
    if record.unit == "s":
        texts.append(threads_text(record.threads))
    return ", ".join(texts)


def _main_rival(record: Record) -> str | None:
    """The rival of a record that stands in no table of its own."""
    if record.topic in (CALL, CALL_GRAD, STATE) or record.shape == str(DECODING):
        return NN_LINEAR
    if record.topic == TRAIN_STEP:
        return DENSE
    return FLOAT32 if record.dtype == "bfloat16" else None


def _amount(record: Record, who: str) -> str:
    value = record.measured[who].median
    if record.unit == "B":
        return f"{value / 1e6:.2f} MB"
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.1f} µs"


def _compared(record: Record, against: str, verdict: Verdict | None) -> str:
    if verdict and verdict.bar.kind == "extra":
        return f"{verdict.value * 1e6:+.1f} µs"
    if record.unit == "B":
        return f"{1 / record.ratios[against].median:.3f} of it"
    return f"{record.ratios[against].median:.2f}× faster"


def _bound(verdict: Verdict) -> str:
    kind, bound = verdict.bar.kind, verdict.bar.bound
    if kind == "extra":
        return f"≤ {bound * 1e6:.0f} µs"
    return f"≥ {bound:g}" if kind == "ratio" else f"≤ {bound:g}"


def _sizes(shape: str) -> str:
    return shape.replace("x", "×")


def describe(results: Results) -> list[str]:
    """Say what the results were measured on and with, and what they do not show.

    Args:
        results: of one run.

    Returns:
        Lines.
    """
    machine = results.machine
    lines = [
        machine_line(results),
        f"Gossamer's instruction set: {machine['isa']} (available: {', '.join(machine['isas'])}); "
        f"torch's own kernels: {machine['torch_capability']}; MKL: {machine['mkl'] or 'none'}",
        versions_line(results),
        "float32 unless said otherwise; medians of interleaved rounds; every result was first "
        "compared with the dense formula",
        *shortcomings(results),
        *honest_notes(machine),
    ]
    if unsteady := sum(record.unsteady for record in results.records):
        lines.append(
            f"{unsteady} of {len(results.records)} measurements were disturbed (marked ~): "
            "quartiles more than a fifth of the median apart."
        )
    reasons = {f"{who}: {why}" for r in results.records for who, why in r.skipped.items()}
    return [*lines, *sorted(reasons), *(f"ERROR {error}" for error in results.errors)]


def _words(verdict: Verdict) -> str:
    extra = verdict.bar.kind == "extra"
    value = f"{verdict.value * 1e6:.1f} µs" if extra else f"{verdict.value:.2f}"
    (rival,) = verdict.bar.against
    return f"{_what(verdict.record)}: {value} to {rival}, bar {_bound(verdict)}"
