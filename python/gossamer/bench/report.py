"""Tables of results: each ratio beside its bar, for the terminal and as Markdown."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gossamer.bench.bars import (
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
    Verdict,
    verdicts,
)
from gossamer.bench.cases import (
    DECODING,
    MASKED_DENSE,
    NN_LINEAR,
    SHAPES,
    SPARSEPROP,
    TORCH_CSR,
)
from gossamer.bench.machine import honest_notes
from gossamer.bench.results import Record, Results

MET, MISSED = "✓", "✗"
VERBS = (SPMM, SPMM_T, SDDMM)


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Args:
        text: what it shows.
        met: whether it meets its bar; None if it has none.
    """

    text: str
    met: bool | None = None


@dataclass(frozen=True)
class Grid:
    """A table, before it is drawn on a terminal or written as Markdown.

    Args:
        title: what it shows.
        headings: of its columns.
        rows: cells, as many a row as there are headings.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def grids(records: Sequence[Record]) -> list[Grid]:
    """Lay out everything that was measured.

    Args:
        records: of one run.

    Returns:
        Tables that have at least one row.
    """
    judged = {(v.record.key, v.bar.against): v for v in verdicts(records)}
    layers = [r for r in records if r.dtype == "float32" and r.shape in set(map(str, SHAPES))]
    found = [
        _ratio_grid(f"{topic}: times faster than {rival}", layers, topic, rival, judged)
        for rival in (NN_LINEAR, SPARSEPROP, MASKED_DENSE, TORCH_CSR)
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
        verdict.bar.against == rival
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
    headings += [f"{_times(shape)}, {_threads(threads)}" for shape, threads in columns]
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
    texts = [record.topic, _times(record.shape), record.pattern]
    if record.dtype != "float32":
        texts.append(record.dtype)
    if record.unit == "s":
        texts.append(_threads(record.threads))
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


def _times(shape: str) -> str:
    return shape.replace("x", "×")


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def machine_line(results: Results) -> str:
    """The processor, its cores and caches, and the system."""
    machine = results.machine
    caches = ", ".join(f"{level} {size}" for level, size in machine["caches"].items())
    return f"{machine['cpu']}, {machine['cores']} cores ({caches}), {machine['system']}"


def versions_line(results: Results) -> str:
    """Versions of what took part, and the commits that were measured."""
    versions = ", ".join(f"{who} {number}" for who, number in results.machine["versions"].items())
    return f"{versions}; commit {', '.join(results.commits) or 'unknown'}"


def shortcomings(results: Results) -> list[str]:
    """Why the run says less than a whole one; nothing if it was whole."""
    lines = []
    if results.settings["quick"]:
        lines.append("A quick run: it shows that everything works, its numbers mean little.")
    if not results.complete:
        lines.append("Not the whole plan was measured.")
    return lines


def describe(results: Results) -> list[str]:
    """Say on what and with what the results were measured, and what they do not show.

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


def summary(results: Results) -> str:
    """How many bars are met, and which are not.

    Args:
        results: of one run.

    Returns:
        One line, and one more for each bar that is missed.
    """
    judged = verdicts(results.records)
    missed = [v for v in judged if not v.met]
    met = len(judged) - len(missed)
    lines = [f"{met} of {len(judged)} bars met ({MET}), {len(missed)} missed ({MISSED})"]
    for v in missed:
        r = v.record
        where = _what(r)
        value = f"{v.value * 1e6:.1f} µs" if v.bar.kind == "extra" else f"{v.value:.2f}"
        lines.append(f"missed: {where}: {value} to {v.bar.against}, bar {_bound(v)}")
    return "\n".join(lines)


def show(results: Results, console: Console) -> None:
    """Print the tables.

    Args:
        results: of one run.
        console: where to.
    """
    draw(console, grids(results.records), describe(results), summary(results))


def draw(console: Console, tables: Iterable[Grid], lines: Iterable[str], verdict: str) -> None:
    """Print tables, then lines, then how the bars stand.

    Args:
        console: where to.
        tables: to print.
        lines: about them.
        verdict: in bold.
    """
    for grid in tables:
        table = Table(title=grid.title, title_justify="left")
        table.add_column(grid.headings[0])
        for heading in grid.headings[1:]:
            table.add_column(heading, justify="right")
        for row in grid.rows:
            table.add_row(*map(_coloured, row))
        console.print(table)
    for line in lines:
        console.print(escape(line), highlight=False)
    console.print(f"[bold]{escape(verdict)}[/]", highlight=False)


def _coloured(cell: Cell) -> str:
    if cell.met is None:
        return escape(cell.text)
    return f"[green]{cell.text} {MET}[/]" if cell.met else f"[bold red]{cell.text} {MISSED}[/]"


def markdown(results: Results) -> str:
    """Write the tables for a README; each bar is marked as met or missed.

    Args:
        results: of one run.

    Returns:
        Markdown.
    """
    return as_markdown(grids(results.records), describe(results), summary(results))


def as_markdown(tables: Iterable[Grid], lines: Iterable[str], verdict: str) -> str:
    """Write lines, tables and how the bars stand.

    Args:
        tables: to write.
        lines: about them, which come first.
        verdict: a line, and one more for each bar that is missed.

    Returns:
        Markdown.
    """
    parts = [*(f"- {line}" for line in lines), ""]
    for grid in tables:
        parts += [f"**{grid.title}**", "", _line(grid.headings)]
        parts.append(_line(["---", *(["---:"] * (len(grid.headings) - 1))]))
        parts += [_line([_marked(cell) for cell in row]) for row in grid.rows]
        parts.append("")
    first, *rest = verdict.splitlines()
    parts += [f"{first}.", "", *(f"- {line}" for line in rest)]
    return "\n".join(parts).rstrip() + "\n"


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _marked(cell: Cell) -> str:
    if cell.met is None:
        return cell.text
    return f"{cell.text} {MET if cell.met else MISSED}"
