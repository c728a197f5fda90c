"""Tables of the proximal part: times, how many times faster, and the bars."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from gossamer.bench.cases import GOSSAMER
from gossamer.bench.ot_report import seconds, tally
from gossamer.bench.prox_bars import (
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
    Verdict,
    times,
    verdicts,
)
from gossamer.bench.prox_plot import plot
from gossamer.bench.report import (
    Cell,
    Grid,
    as_markdown,
    draw,
    machine_line,
    shortcomings,
    versions_line,
)
from gossamer.bench.results import Record, Results

DISTRIBUTIONS = ("modopt", "pyproximal")
ABSENT = "not installed"


def publish(results: Results, console: Console) -> list[Path]:
    """Print the tables, and write them as Markdown and as a picture beside the JSON.

    Args:
        results: of one run.
        console: where to print.

    Returns:
        The files.
    """
    tables, lines, verdict = grids(results.records), describe(results), summary(results)
    draw(console, tables, lines, verdict)
    path = results.path.with_suffix(".md")
    path.write_text(as_markdown(tables, lines, verdict), encoding="utf-8")
    written = [results.path, path]
    picture = results.path.with_suffix(".png")
    if plot(results, picture):
        written.append(picture)
    return written


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


def brief(value: float) -> str:
    """A time with three digits.

    Example:
        >>> brief(1.23e-5), brief(0.0123)
        ('12.3 µs', '12.3 ms')
    """
    return f"{value * 1e6:.3g} µs" if value < 0.9995e-3 else seconds(value)


def bandwidth(record: Record, name: str) -> float:
    """Bytes a second that an operator in place reads and writes.

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
    rows = []
    for v in judged:
        value = Cell(v.text + (" ?" if v.met is None else ""), v.met)
        rows.append([Cell(v.record.topic), *_where(v.record), Cell(v.bar.words), value])
    return Grid("bars", ["topic", "what", "size", "dtype", "threads", "bar", "measured"], rows)


def describe(results: Results) -> list[str]:
    """Say on what and with what the results were measured, and what they do not show.

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


def summary(results: Results) -> str:
    """How many bars are met, and which are not.

    Args:
        results: of one run.

    Returns:
        One line, and one more for each bar that is missed or undecided.
    """
    return tally((v.met, _words(v)) for v in verdicts(results.records))


def _words(verdict: Verdict) -> str:
    r = verdict.record
    where = f"{r.topic}, {r.pattern}, {r.shape}, {r.dtype}, threads: {r.threads}"
    return f"{where}: {verdict.bar.words}: {verdict.text}"
