"""Tables of the transport part: seconds, how many times faster, and the bars."""

from collections.abc import Sequence

from bench.harness.bars import GAVE_UP, STOPPED, Verdict
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
from bench.harness.words import seconds
from bench.transport.bars import LARGE, MEMORY, TRACE, TRANSPORT, case_of, verdicts
from bench.transport.cases import PUBLISHED_CASE, TOLERANCE
from bench.transport.solvers import GEOMLOSS_STEPS, LAZY, SOLVERS

_OWN = ("jax", "scikit-learn", "scipy")
DISTRIBUTIONS = tuple(
    dict.fromkeys([*(s.distribution for s in SOLVERS.values() if s.distribution), *_OWN])
)


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
    found = []
    for threads in dict.fromkeys(r.threads for r in records):
        chosen = [r for r in records if r.topic == TRANSPORT and r.threads == threads]
        paper = [r for r in chosen if case_of(r).reg == PUBLISHED_CASE.reg]
        title = f"seconds (times Gossamer's), threads: {threads}"
        found.append(_case_grid(title, [r for r in chosen if r not in paper]))
        found.append(_case_grid(f"the published case: {title}", paper))
    cases = dict.fromkeys((r.shape, _before_to(r)) for r in records if r.topic == TRACE)
    for shape, pattern in cases:
        chosen = [r for r in records if (r.topic, r.shape) == (TRACE, shape)]
        chosen = [r for r in chosen if _before_to(r) == pattern]
        found.append(_trace(f"seconds to an error, {pattern}, n = {shape.split('x')[0]}", chosen))
    found.append(_lazy([r for r in records if r.topic in (LARGE, MEMORY)]))
    found.append(_bars(verdicts(records)))
    return [grid for grid in found if grid.rows]


def _case_grid(title: str, records: Sequence[Record]) -> Grid:
    rivals = _rivals(records)
    rows = []
    for record in records:
        case = case_of(record)
        entries = [Cell(_entry(record, name)) for name in (GOSSAMER, *rivals)]
        rows.append([Cell(case.family), Cell(f"{case.reg:.3g}"), Cell(str(case.n)), *entries])
    return Grid(title, ["problem", "reg", "n", GOSSAMER, *rivals], rows)


def _bars(judged: Sequence[Verdict]) -> Grid:
    rows = []
    for v in judged:
        case = case_of(v.record)
        at = (Cell(case.family), Cell(f"{case.reg:.3g}"), Cell(str(case.n)))
        rows.append([*at, Cell(v.bar.words), verdict_cell(v)])
    return Grid("bars, one thread", ["problem", "reg", "n", "bar", "measured"], rows)


def _rivals(records: Sequence[Record]) -> list[str]:
    names = [name for name in SOLVERS if name != GOSSAMER]
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
    size = f", n = {case_of(records[0]).n}" if records else ""
    return Grid(f"a cost that is never stored{size}", ["what", "problem", "threads", LAZY], rows)


def describe(results: Results) -> list[str]:
    """Say what the results were measured on and with, and what they do not show.

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
        "With more threads, a solver that did not solve a case with fewer is not tried again.",
        *shortcomings(results),
    ]
    absent = {f"{who}: {why}" for r in results.records for who, why in r.skipped.items()}
    lines += sorted(line for line in absent if "not installed" in line or "prepared" in line)
    return [*lines, *(f"ERROR {error}" for error in results.errors)]


def _words(verdict: Verdict) -> str:
    case = case_of(verdict.record)
    return f"{case.family}, n = {case.n}, reg {case.reg:.3g}: {verdict.bar.words}: {verdict.text}"
