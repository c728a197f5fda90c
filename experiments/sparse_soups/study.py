"""Sparse Model Soups beside their copies, and SWAMP beside IMP and an ensemble: digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

from rich.console import Console

from bench.harness.rows import Row, Work, carry_out, check_counts, header_of, made_on
from bench.harness.tables import Cell, Grid, Page
from experiments.sparse_soups.training import METHODS, NOISE, SOUP, Plan, Training, measure
from gossamer import parse_pattern, timing

SCHEMA = 1
NAME = "sparse-soups"
WRONG = (0, 20)  # percent of the labels to learn from


def study(
    out: Path,
    plan: Plan | None = None,
    *,
    seeds: int = 3,
    jobs: int = 1,
    overwrite: bool = False,
    console: Console | None = None,
) -> int:
    """Run everything that is missing; write the rows and the tables.

    Args:
        out: folder of the results; what it holds of the same plan is kept.
        plan: what all runs share.
        seeds: runs of each method, from seed 0.
        jobs: runs at the same time, each on one thread.
        overwrite: drop what the folder holds.
        console: where to print; standard output by default.

    Returns:
        0; 130 if interrupted, with all that was run so far written.

    Raises:
        CheckpointError: the folder holds rows of other options.
        ArgumentError: a number of seeds or jobs below 1.
    """
    plan, console = plan or Plan(), console or Console()
    check_counts(NAME, seeds=seeds, jobs=jobs)
    path, header = out / f"{NAME}.jsonl", header_of(SCHEMA, asdict(plan))
    grid = [
        Training(method, wrong, seed)
        for seed in range(seeds)
        for wrong in WRONG
        for method in METHODS
    ]
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
    """Lay out the rows: accuracy, accuracy under noise and loss at each sparsity."""
    plan = header["plan"]
    density = parse_pattern(plan["pattern"]).density
    sizes = [f"{1 - density ** (i / plan['rounds']):.1%}" for i in range(1, plan["rounds"] + 1)]
    lines = [
        made_on(header, "one thread per run"),
        f"digits of scikit-learn, 800 images to learn from, 997 to judge by; two hidden layers of "
        f"{plan['width']} with batch normalisation, a dense phase, then {plan['rounds']} prunings "
        f"by magnitude with {plan['epochs']} epochs of SGD after each",
        "of the labels to learn from, a share is drawn anew where the title says so",
        "SMS averages three copies per phase and prunes the average; SWAMP averages the last "
        "quarter of four particles per phase, and goes back to an early point, as IMP does; "
        f"statistics of normalisation are estimated anew; noise: of {NOISE:g} is added to images "
        "from 0 to 1; the best copy is chosen by the same images, in hindsight",
        "mean ± standard deviation over seeds",
    ]
    grids = []
    kinds: list[tuple[str, int, Callable[[list[float]], float], Callable[[float], str]]] = [
        ("Right answers (%)", 0, max, lambda v: f"{100 * v:.2f}"),
        ("Right answers on images with noise (%)", 1, max, lambda v: f"{100 * v:.2f}"),
        ("Loss (nats)", 2, min, lambda v: f"{v:.4f}"),
    ]
    for wrong in sorted({row["wrong"] for row in rows}):
        own = [row for row in rows if row["wrong"] == wrong]
        for title, at, best, text in kinds:
            table = []
            for name, values in shown(own, at, best):
                cells = [
                    f"{text(fmean(one))} ± {text(stdev(one))}" if len(one) > 1 else text(one[0])
                    for one in values
                ]
                table.append([Cell(name), *map(Cell, cells)])
            labels = f"{wrong} % of the labels wrong" if wrong else "right labels"
            grids.append(Grid(f"{title}, {labels}", ["dropped", *sizes], table))
    return Page(grids, lines, "\n".join([f"{len(rows)} runs", *verdict(rows, sizes)]))


def shown(
    rows: Sequence[Row], at: int, best: Callable[[list[float]], float]
) -> list[tuple[str, list[list[float]]]]:
    """Return names and values [phase][seed] of one measure, copies of the soup among them."""
    found = []
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        if not own:
            continue
        phases = range(len(own[0]["result"]))
        found.append((method, [[row["result"][i][at] for row in own] for i in phases]))
        if method == SOUP:
            each = [[[one[at] for one in row["copies"][i]] for row in own] for i in phases]
            found.append(("its best copy", [[best(of) for of in one] for one in each]))
            found.append(("its copies on average", [[fmean(of) for of in one] for one in each]))
    return found


def verdict(rows: Sequence[Row], sizes: Sequence[str]) -> list[str]:
    """Say where the soup is at least as good as its best copy, on average over seeds."""
    said = []
    for wrong in sorted({row["wrong"] for row in rows}):
        own = [row for row in rows if row["wrong"] == wrong]
        for title, at, best, sign in (("right answers", 0, max, 1), ("loss", 2, min, -1)):
            by = dict(shown(own, at, best))
            if SOUP not in by:
                continue
            for rival in ("its best copy", "its copies on average"):
                pairs = zip(sizes, by[SOUP], by[rival], strict=True)
                met = [size for size, a, b in pairs if sign * (fmean(a) - fmean(b)) >= 0]
                said.append(
                    f"{title}, {wrong} % wrong labels: the soup is at least as good as {rival} at "
                    f"{len(met)} of {len(sizes)} sparsities{': ' + ', '.join(met) if met else ''}"
                )
    return said


def _key(row: Row) -> tuple[str, int, int]:
    return row["method"], row["wrong"], row["seed"]


def _words(row: Row) -> str:
    right = ", ".join(f"{one[0]:.1%}" for one in row["result"])
    return f"{row['method']}, {row['wrong']} % wrong, seed {row['seed']}: {right}"
