"""Tables of the transport part: seconds, how many times faster, and the bars."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from gossamer.bench.ot_bars import (
    GAVE_UP,
    LARGE,
    MEMORY,
    STOPPED,
    TRACE,
    TRANSPORT,
    Verdict,
    cell_of,
    verdicts,
)
from gossamer.bench.ot_cases import PUBLISHED_CASE, TOLERANCE
from gossamer.bench.ot_plot import plot_errors, plot_sizes
from gossamer.bench.ot_rivals import ENTRANTS, GEOMLOSS_STEPS, GOSSAMER, LAZY
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

_OWN = ("jax", "scikit-learn", "scipy")
DISTRIBUTIONS = tuple(
    dict.fromkeys([*(e.distribution for e in ENTRANTS.values() if e.distribution), *_OWN])
)


def publish(results: Results, console: Console) -> list[Path]:
    """Print the tables, and write them as Markdown and as pictures beside the JSON.

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
    for name, plot in (("sizes", plot_sizes), ("errors", plot_errors)):
        picture = path.with_name(f"{path.stem}-{name}.png")
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
    for threads in dict.fromkeys(r.threads for r in records):
        chosen = [r for r in records if r.topic == TRANSPORT and r.threads == threads]
        paper = [r for r in chosen if cell_of(r).reg == PUBLISHED_CASE.reg]
        title = f"seconds (times Gossamer's), threads: {threads}"
        found.append(_cells(title, [r for r in chosen if r not in paper]))
        found.append(_cells(f"the published case: {title}", paper))
    cells = dict.fromkeys((r.shape, _before_to(r)) for r in records if r.topic == TRACE)
    for shape, pattern in cells:
        chosen = [r for r in records if (r.topic, r.shape) == (TRACE, shape)]
        chosen = [r for r in chosen if _before_to(r) == pattern]
        found.append(_trace(f"seconds to an error, {pattern}, n = {shape.split('x')[0]}", chosen))
    found.append(_lazy([r for r in records if r.topic in (LARGE, MEMORY)]))
    found.append(_bars(verdicts(records)))
    return [grid for grid in found if grid.rows]


def _cells(title: str, records: Sequence[Record]) -> Grid:
    rivals = _rivals(records)
    rows = []
    for record in records:
        cell = cell_of(record)
        entries = [Cell(_entry(record, name)) for name in (GOSSAMER, *rivals)]
        rows.append([Cell(cell.family), Cell(f"{cell.reg:.3g}"), Cell(str(cell.n)), *entries])
    return Grid(title, ["problem", "reg", "n", GOSSAMER, *rivals], rows)


def _bars(judged: Sequence[Verdict]) -> Grid:
    rows = []
    for v in judged:
        cell = cell_of(v.record)
        value = Cell(v.text + (" ?" if v.met is None else ""), v.met)
        at = (Cell(cell.family), Cell(f"{cell.reg:.3g}"), Cell(str(cell.n)))
        rows.append([*at, Cell(v.bar), value])
    return Grid("bars, one thread", ["problem", "reg", "n", "bar", "measured"], rows)


def _rivals(records: Sequence[Record]) -> list[str]:
    names = [name for name in ENTRANTS if name != GOSSAMER]
    return [n for n in names if any(n in r.measured or n in r.skipped for r in records)]


def _entry(record: Record, name: str) -> str:
    if name in record.measured:
        times = f" ({record.ratios[name].median:.2g}×)" if name in record.ratios else ""
        return seconds(record.measured[name].median) + times
    reason = record.skipped.get(name, "")
    if reason.startswith(STOPPED):
        return reason.replace(f"{STOPPED} after", "–, stopped at")
    if reason.startswith(GAVE_UP):
        return f"–, error {record.reached[name]:.0e}"
    return "–"


def seconds(value: float) -> str:
    """A time with three digits.

    Example:
        >>> seconds(0.01234), seconds(1.5)
        ('12.3 ms', '1.50 s')
    """
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _before_to(record: Record) -> str:
    return record.pattern.rpartition(", to ")[0]


def _trace(title: str, records: Sequence[Record]) -> Grid:
    names = [GOSSAMER, *_rivals(records)]
    rows = [
        [Cell(r.pattern.rpartition(", to ")[2]), *(Cell(_reached(r, name)) for name in names)]
        for r in records
    ]
    return Grid(title, ["asked", *names], rows)


def _reached(record: Record, name: str) -> str:
    if name not in record.measured:
        return "–"
    return f"{seconds(record.measured[name].median)} ({record.reached[name]:.0e})"


def _lazy(records: Sequence[Record]) -> Grid:
    rows = []
    for record in records:
        if LAZY not in record.measured:
            shown = record.skipped.get(LAZY, "")
        else:
            value = record.measured[LAZY].median
            shown = seconds(value) if record.unit == "s" else f"{value / 1e9:.2f} GB"
        rows.append(
            [Cell(record.topic), Cell(record.pattern), Cell(str(record.threads)), Cell(shown)]
        )
    size = f", n = {cell_of(records[0]).n}" if records else ""
    return Grid(f"a cost that is never stored{size}", ["what", "problem", "threads", LAZY], rows)


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
        f"float64; until the L1 error of both marginals is at most {TOLERANCE:.0e}, measured on "
        "the plan that each returned; the largest cost is 1; medians over three problems, "
        "interleaved, each solver in a process of its own; compilation is not counted",
        "stopped at: a call was ended after so long without an answer; error: it ended by itself "
        f"with that L1 error. geomloss has no tolerance and ran {GEOMLOSS_STEPS} steps.",
        "With more threads nobody is tried again who did not solve a cell with fewer.",
        *shortcomings(results),
    ]
    absent = {f"{who}: {why}" for r in results.records for who, why in r.skipped.items()}
    lines += sorted(line for line in absent if "not installed" in line or "prepared" in line)
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
    cell = cell_of(verdict.record)
    return f"{cell.family}, n = {cell.n}, reg {cell.reg:.3g}: {verdict.bar}: {verdict.text}"


def tally(judged: Iterable[tuple[bool | None, str]]) -> str:
    """Count bars, and name those that are not met.

    Args:
        judged: whether each is met (None: undecided), and its words.

    Returns:
        One line, and one more for each bar that is missed or undecided.
    """
    all_of_them = list(judged)
    left = [(met, words) for met, words in all_of_them if not met]
    open_ = sum(met is None for met, _ in left)
    lines = [
        f"{len(all_of_them) - len(left)} of {len(all_of_them)} bars met (✓), {len(left) - open_} "
        f"missed (✗), {open_} undecided (?)"
    ]
    lines += [f"{'undecided' if met is None else 'missed'}: {words}" for met, words in left]
    return "\n".join(lines)
