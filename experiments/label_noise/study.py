"""Sharpness-aware training where labels are wrong: dense and sparse networks on the digits.

Each method's radius is chosen on images with right labels, by the mean over all seeds; accuracies
are those on other images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean

from rich.console import Console

from bench.harness.rows import Row, Work, carry_out, check_counts, header_of, made_on
from bench.harness.tables import Cell, Grid, Page
from bench.harness.words import spread
from experiments.label_noise.training import BASE, Plan, Training, measure
from gossamer import timing

SCHEMA = 1
NAME = "label-noise"
SPARSITIES = (0, 90)
RADII: Mapping[str, Sequence[float]] = {
    BASE: (0.0,), "SAM": (0.05, 0.1, 0.2, 0.5, 1.0), "ASAM": (0.25, 0.5, 1.0, 2.0, 4.0),
    "MSAM": (0.3, 1.0, 3.0),
}  # fmt: skip


def study(
    out: Path,
    plan: Plan | None = None,
    *,
    sparsities: Sequence[int] = SPARSITIES,
    radii: Mapping[str, Sequence[float]] = RADII,
    seeds: int = 5,
    jobs: int = 1,
    overwrite: bool = False,
    console: Console | None = None,
) -> int:
    """Train everything that is missing; write the rows and the table.

    Args:
        out: folder of the results; what it holds of the same plan is kept.
        plan: what all trainings share.
        sparsities: in percent.
        radii: that are tried, by method.
        seeds: trainings of each, from seed 0.
        jobs: trainings at the same time, each on one thread.
        overwrite: drop what the folder holds.
        console: where to print; standard output by default.

    Returns:
        0; 130 if interrupted, with all that was trained so far written.

    Raises:
        CheckpointError: the folder holds rows of other options.
        ArgumentError: a number of seeds or jobs below 1.
    """
    plan, console = plan or Plan(), console or Console()
    check_counts(NAME, seeds=seeds, jobs=jobs)
    path = out / f"{NAME}.jsonl"
    grid = [
        Training(sparsity, method, rho, seed)
        for sparsity in sparsities
        for method, tried in radii.items()
        for rho in tried
        for seed in range(seeds)
    ]
    header = header_of(SCHEMA, asdict(plan))
    with timing.threads(1):
        return carry_out(
            path,
            header,
            [Work(partial(measure, plan), grid, jobs)],
            _key,
            _words,
            page,
            overwrite=overwrite,
            console=console,
        )


def page(rows: Sequence[Row], header: Row) -> Page:
    """Lay out the rows: each method with the radius that is best on the images to choose by."""
    plan = header["plan"]
    lines = [
        made_on(header, "one thread per training"),
        f"digits of scikit-learn, 1000 images to learn from, {plan['noise']:.0%} of their labels "
        f"drawn anew; two hidden layers of {plan['width']}, SGD with momentum, "
        f"{plan['epochs']} epochs; sparse masks are random and fixed",
        "accuracy on 500 images with right labels, mean ± standard deviation over seeds; the "
        "radius is the best of those tried on 297 other images with right labels",
    ]
    table = []
    for sparsity in sorted({row["sparsity"] for row in rows}):
        base: float | None = None
        for method, best, tests, tried in chosen(rows, sparsity):
            mean = fmean(tests)
            base = mean if method == BASE else base
            radii = f"{best:g} of {', '.join(f'{rho:g}' for rho in tried)}"
            table.append([
                Cell(f"{sparsity} %" if sparsity else "dense"), Cell(method),
                Cell("–" if method == BASE else radii),
                Cell(spread(tests, 2, percent=True)),
                Cell("–" if base is None else f"{100 * (mean - base):+.2f}"), Cell(str(len(tests))),
            ])  # fmt: skip
    headings = ["dropped", "method", "radius", "accuracy (%)", "to SGD", "seeds"]
    summary = f"{len(rows)} trainings"
    return Page([Grid("Wrong labels", headings, table)], lines, summary)


def chosen(rows: Sequence[Row], sparsity: int) -> list[tuple[str, float, list[float], list[float]]]:
    """Return method, best radius, its accuracies on the test images, and all radii."""
    found = []
    own = [row for row in rows if row["sparsity"] == sparsity]
    for method in dict.fromkeys(row["method"] for row in own):
        by_rho: dict[float, list[Row]] = {}
        for row in own:
            if row["method"] == method:
                by_rho.setdefault(row["rho"], []).append(row)
        best = max(by_rho, key=lambda rho: fmean(row["choice"] for row in by_rho[rho]))
        found.append((method, best, [row["test"] for row in by_rho[best]], sorted(by_rho)))
    return found


def _key(row: Row) -> tuple[int, str, float, int]:
    return row["sparsity"], row["method"], row["rho"], row["seed"]


def _words(row: Row) -> str:
    who = f"{row['sparsity']} % {row['method']} {row['rho']:g} seed {row['seed']}"
    return f"{who}: {row['test']:.1%}"
