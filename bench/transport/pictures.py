"""Pictures of the transport part: seconds against n, and error against seconds."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.harness.record import GOSSAMER, Record
from bench.harness.results import Results
from bench.harness.tables import pyplot
from bench.transport.bars import LARGE, TRACE, TRANSPORT, case_of
from bench.transport.solvers import LAZY, SOLVERS

COLOURS = dict(
    zip(
        SOLVERS,
        (
            "#b3202c", "#2a6f97", "#61a5c2", "#5a8f29", "#8d6e63", "#d17b0f", "#7b2d8b", "#e07a9a",
            "#999999", "#555555", "#b3202c",
        ),
        strict=True,
    )
)  # fmt: skip


def pictures(results: Results) -> list[Path]:
    """Draw beside the results' file what there is to draw."""
    written = []
    for name, plot in (("sizes", plot_sizes), ("errors", plot_errors)):
        picture = results.path.with_name(f"{results.path.stem}-{name}.png")
        if plot(results, picture):
            written.append(picture)
    return written


def sizes(records: Iterable[Record]) -> dict[tuple[str, float], dict[str, dict[int, float]]]:
    """Seconds with one thread.

    Args:
        records: of one run.

    Returns:
        (family, reg) -> solver -> n -> seconds; only those that solved the case.
    """
    found: dict[tuple[str, float], dict[str, dict[int, float]]] = {}
    for record in records:
        if record.topic == TRANSPORT and record.threads == 1:
            case = case_of(record)
            lines = found.setdefault((case.family, case.reg), {})
            for name, times in record.measured.items():
                lines.setdefault(name, {})[case.n] = times.median
    # One size is no line.
    return {
        at: lines for at, lines in found.items() if len({n for d in lines.values() for n in d}) > 1
    }


def plot_sizes(results: Results, path: Path) -> bool:
    """Draw seconds against n, a panel for each family and reg.

    Args:
        results: of one run.
        path: of the PNG.

    Returns:
        Whether there was anything to draw.
    """
    panels = sizes(results.records)
    families = list(dict.fromkeys(family for family, _ in panels))
    regs = list(dict.fromkeys(reg for _, reg in panels))
    if not panels:
        return False
    plt = pyplot()
    from matplotlib.ticker import NullLocator

    shape = (3.3 * len(regs) + 1.6, 2.5 * len(families) + 0.8)
    figure, axes = plt.subplots(
        len(families), len(regs), figsize=shape, sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    lazy = {r.pattern: r for r in results.records if r.topic == LARGE and LAZY in r.measured}
    for i, family in enumerate(families):
        for j, reg in enumerate(regs):
            axis = axes[i][j]
            lines = panels.get((family, reg), {})
            for name in (n for n in SOLVERS if n in lines):
                at = dict(sorted(lines[name].items()))
                _line(axis, list(at), list(at.values()), name)
            for record in lazy.values():
                case = case_of(record)
                if (case.family, case.reg) == (family, reg):
                    value = record.measured[LAZY].median
                    label = f"{LAZY}, threads: {record.threads}"
                    axis.plot(case.n, value, "*", ms=10, color=COLOURS[LAZY], label=label)
            axis.set(xscale="log", yscale="log", title=f"{family}, reg {reg:g}")
            marks = sorted({n for line in lines.values() for n in line})
            axis.set_xticks(marks, [str(n) for n in marks])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.grid(alpha=0.3, which="both", lw=0.5)
    for axis in axes[-1]:
        axis.set_xlabel("n")
    for row in axes:
        row[0].set_ylabel("seconds")
    _legend(figure, axes)
    machine = results.machine
    figure.suptitle(
        f"{machine['cpu']}, {machine['isa']}, one thread, L1 error 1e-9; a solver that is absent "
        "did not get there",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def traces(records: Iterable[Record]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Errors that were reached, and when.

    Args:
        records: of one run.

    Returns:
        Problem -> solver -> (seconds, error).
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in records:
        if record.topic == TRACE:
            problem = f"{record.pattern.rpartition(', to ')[0]}, n = {record.shape.split('x')[0]}"
            lines = found.setdefault(problem, {})
            for name, times in record.measured.items():
                lines.setdefault(name, []).append((times.median, record.reached[name]))
    return found


def plot_errors(results: Results, path: Path) -> bool:
    """Draw the error that was reached against the seconds it took, a panel for each problem.

    Args:
        results: of one run.
        path: of the PNG.

    Returns:
        Whether there was anything to draw.
    """
    problems = {at: lines for at, lines in traces(results.records).items() if lines}
    if not problems:
        return False
    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(problems), figsize=(5.2 * len(problems) + 0.6, 5.2), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, (problem, lines) in zip(axes[0], problems.items(), strict=True):
        for name in (n for n in SOLVERS if n in lines):
            at = sorted(lines[name], key=lambda point: -point[1])
            _line(axis, [t for t, _ in at], [max(e, 1e-16) for _, e in at], name)
        axis.set(xscale="log", yscale="log", title=problem, xlabel="seconds, one thread")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("L1 error of both marginals")
    _legend(figure, axes)
    machine = results.machine
    figure.suptitle(f"{machine['cpu']}, {machine['isa']}; each point is a solve", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _line(axis: Any, x: list[Any], y: list[float], name: str) -> None:
    own = name == GOSSAMER
    axis.plot(
        x, y, marker="o", ms=4 if own else 3, lw=2.2 if own else 1.2, color=COLOURS[name],
        label=name, zorder=3 if own else 2,
    )  # fmt: skip


def _legend(figure: Any, axes: Any) -> None:
    labels: dict[str, Any] = {}
    for axis in axes.ravel():
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    figure.legend(
        labels.values(), labels.keys(), loc="outside lower center", ncols=4, frameon=False
    )
