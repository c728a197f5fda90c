"""Table, sentences and picture of the digits experiment."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bench.harness.tables import Cell, Grid, Page, pyplot
from bench.harness.words import brief, times
from experiments.digits.training import DENSE, SMALL, UNBIASED, WGSEF

Row = Mapping[str, Any]

OURS = (WGSEF, UNBIASED)
COLOURS = {True: "#2a6f97", False: "#b56576"}


def page(content: Row) -> Page:
    """Lay out the content of the JSON file."""
    budgets = by_budget(content["chosen"])
    tables = [_table(title, rows) for title, rows in budgets.items() if rows]
    return Page(tables, describe(content), "\n".join(sentences(content["chosen"])))


def by_budget(chosen: Iterable[Row]) -> dict[str, dict[str, list[Row]]]:
    """Rows of one network and budget, by method; the dense network is among each.

    Args:
        chosen: one row per seed.

    Returns:
        Title -> method -> rows.
    """
    rows = list(chosen)
    found: dict[str, dict[str, list[Row]]] = {}
    for row in (r for r in rows if r["method"] != DENSE):
        title = f"{row['network']}, 1/{1 / row['share']:.3g} of each hidden layer"
        if title not in found:
            dense = [r for r in rows if (r["method"], r["network"]) == (DENSE, row["network"])]
            found[title] = {DENSE: dense} if dense else {}
        found[title].setdefault(row["method"], []).append(row)
    return found


def mean_and_deviation(rows: Sequence[Row], name: str = "test") -> tuple[float, float]:
    """Mean over the seeds, and sample standard deviation (0 of one seed).

    Example:
        >>> mean_and_deviation([{"test": 0.5}, {"test": 0.7}])
        (0.6, 0.1414...)
    """
    values = [float(row[name]) for row in rows]
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def _table(title: str, methods: Mapping[str, Sequence[Row]]) -> Grid:
    batches = sorted(
        {batch for runs in methods.values() for row in runs for batch in row.get("latency", ())},
        key=int,
    )
    rows = []
    for method, runs in methods.items():
        mean, deviation = mean_and_deviation(runs)
        first = runs[0]
        texts = [method, f"{first['strength']:g}", f"{mean:.1%} ± {deviation * 100:.1f}"]
        texts.append(f"{fmean(row['at_cut'] for row in runs):.1%}")
        texts += ["+".join(map(str, first[name])) for name in ("left", "kept")]
        if "failed" in first:
            texts += ["–"] * (2 + len(batches))
        else:
            texts += [f"{first['parameters']:,}", f"{first['flops'] / 1e3:,.0f} k"]
            texts += [_latency(runs, batch) for batch in batches]
        rows.append([Cell(text) for text in texts])
    headings = [
        "method", "strength", "test accuracy", "at the cut", "groups left by itself",
        "groups kept", "parameters", "FLOP", *(f"latency, batch {batch}" for batch in batches),
    ]  # fmt: skip
    return Grid(title, headings, rows)


def _latency(runs: Sequence[Row], batch: str) -> str:
    runs = [row for row in runs if "latency" in row]
    if not runs:
        return "–"
    small = fmean(row["latency"][batch] for row in runs)
    faster = fmean(row["whole_latency"][batch] / row["latency"][batch] for row in runs)
    return f"{brief(small)} ({times(faster)})"


def describe(content: Row) -> list[str]:
    """Say how the numbers came about, and what they do not show."""
    settings, facts = content["settings"], content["machine"]
    course, versions = settings["course"], facts["versions"]
    lines = [
        f"{facts['cpu']}, one thread; "
        + ", ".join(f"{who} {number}" for who, number in versions.items()),
        "scikit-learn's digits: 1000 images to learn from, 297 to choose by, 500 to judge by; "
        f"mean ± standard deviation over {len(settings['seeds'])} seeds",
        f"{course['epochs']} epochs with the penalty, then the neurons and filters of largest norm "
        f"are kept, then {course['tuning']} epochs without; the budget is the same number of "
        "neurons or filters of each hidden layer for everybody, so everybody's network has the "
        "same parameters and FLOP unless its penalty left fewer",
        f"strength: lambda, or the weight decay of who has none; the best of {settings['trials']} "
        "on the validation images with the first seed",
        "at the cut: test accuracy right after it, before fine-tuning; groups left by itself: "
        "before it, with the first seed; latency: of the shrunk network (times faster than the "
        "whole one)",
    ]
    if not content["complete"]:
        lines.append("Not the whole plan was trained.")
    return lines


def sentences(chosen: Iterable[Row]) -> list[str]:
    """Who wins and who loses where.

    Args:
        chosen: one row per seed.

    Returns:
        How to read them, then two lines for each network and budget.
    """
    found = ["Who is within one standard deviation of the best is not told apart from it"]
    for title, methods in by_budget(chosen).items():
        found.append(f"{title}, at the end: {_ranking(methods, 'test')}")
        cut = {m: rows for m, rows in methods.items() if m != SMALL}
        found.append(f"{title}, right after the cut: {_ranking(cut, 'at_cut')}")
    return found


def _ranking(methods: Mapping[str, Sequence[Row]], name: str) -> str:
    scores = {m: mean_and_deviation(rows, name) for m, rows in methods.items() if m != DENSE}
    order = sorted(scores, key=lambda method: -scores[method][0])
    best = order[0]
    top, uncertainty = scores[best]
    behind: list[str] = []
    level: list[str] = []
    for method in order[1:]:
        mean, deviation = scores[method]
        text = f"{method} ({(mean - top) * 100:+.1f})"
        (behind if top - mean > max(uncertainty, deviation) else level).append(text)
    line = f"best is {best} ({top:.1%})"
    if level:
        line += f"; within one standard deviation: {', '.join(level)}"
    if behind:
        line += f"; points behind: {', '.join(behind)}"
    return line


def plot(chosen: Iterable[Row], path: Path) -> bool:
    """Draw each method's accuracy at the end, and right after the cut; a column per budget.

    Args:
        chosen: one row per seed.
        path: of the PNG.

    Returns:
        Whether there was anything to draw.
    """
    budgets = by_budget(chosen)
    if not budgets:
        return False
    plt = pyplot()
    figure, rows = plt.subplots(
        2, len(budgets), figsize=(3.6 * len(budgets) + 1.5, 7.5), squeeze=False, sharey=True,
        layout="constrained",
    )  # fmt: skip
    names = list(dict.fromkeys(m for methods in budgets.values() for m in methods if m != DENSE))
    for axes, key, label in zip(
        rows, ("test", "at_cut"), ("at the end", "at the cut"), strict=True
    ):
        for axis, (title, methods) in zip(axes, budgets.items(), strict=True):
            if DENSE in methods:
                dense = mean_and_deviation(methods[DENSE])[0]
                axis.axvline(dense * 100, color="k", ls="--", lw=1)
            for name, runs in ((n, methods[n]) for n in names if n in methods):
                at, colour = len(names) - names.index(name), COLOURS[name in OURS]
                mean, deviation = mean_and_deviation(runs, key)
                axis.errorbar(
                    mean * 100, at, xerr=deviation * 100, fmt="o", color=colour, capsize=3
                )
            axis.set_yticks(range(1, len(names) + 1), names[::-1])
            axis.set_title(title.replace(", ", "\n", 1), fontsize=10)
            axis.set_xlabel(f"test accuracy {label}, %")
            axis.grid(alpha=0.3)
    figure.suptitle("mean and standard deviation over the seeds; dashed: dense", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True
