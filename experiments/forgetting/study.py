"""Two of ten classes are forgotten: LoRA, group-sparse LoRA by subgradient and by proximal step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean

from rich.console import Console

from bench.harness.rows import Row, Work, carry_out, check_counts, header_of, made_on
from bench.harness.tables import Cell, Grid, Page
from bench.harness.words import spread
from experiments.forgetting.training import METHODS, Plan, Run, measure

SCHEMA = 1
NAME = "forgetting"
SHOTS = (0, 4)


def study(
    out: Path,
    plan: Plan | None = None,
    *,
    seeds: int = 5,
    jobs: int = 1,
    overwrite: bool = False,
    console: Console | None = None,
) -> int:
    """Train everything that is missing; write the rows and the table.

    Args:
        out: folder of the results; what it holds of the same plan is kept.
        plan: what is trained.
        seeds: networks, from seed 0.
        jobs: trainings at the same time, each on one thread.
        overwrite: drop what the folder holds.
        console: where to print.

    Returns:
        0; 130 if interrupted, with all that was trained so far written.

    Raises:
        CheckpointError: the folder holds rows of other options or versions.
        ArgumentError: a number of seeds or jobs below 1.
    """
    plan, console = plan or Plan(), console or Console()
    check_counts(NAME, seeds=seeds, jobs=jobs)
    path = out / f"{NAME}.jsonl"
    grid = [Run(m, shots, seed) for shots in SHOTS for m in METHODS for seed in range(seeds)]
    plain = asdict(plan) | {"forgotten": list(plan.forgotten)}
    header = header_of(SCHEMA, plain)
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
    """Lay out the rows."""
    plan = header["plan"]
    rows = [row for row in rows if "error" not in row]
    lines = [
        made_on(header, "one thread"),
        f"digits of scikit-learn, 1200 images to learn from; {plan['blocks']} residual blocks of "
        f"width {plan['width']}, adapters of rank {plan['rank']} in both layers of each, "
        f"{plan['steps']} steps of Adam; classes {plan['forgotten']} are to be forgotten",
        "accuracy in % on 597 other images, mean ± standard deviation over seeds; zero: blocks "
        f"whose adapters are exactly 0, of {plan['blocks']}",
        f"LoRA: no groups; subgradient, as published: alpha {plan['subgradient_alpha']:g} (from "
        "0.1 on Adam lets nothing be forgotten, because it scales subgradients up); GS-LoRA: "
        f"proximal steps, alpha {plan['alpha']:g}; ++ adds distances of logits to class prototypes",
    ]
    table = []
    for shots in SHOTS:
        for method in METHODS:
            own = [r for r in rows if (r["method"], r["shots"]) == (method, shots)]
            if own:
                table.append([
                    Cell(f"{shots} per class" if shots else "all"), Cell(method),
                    *(_cell(own, n) for n in ("forgotten before", "forgotten")),
                    *(_cell(own, n) for n in ("others before", "others")),
                    Cell(f"{fmean(r['zero'] for r in own):.1f}"), Cell(str(len(own))),
                ])  # fmt: skip
    headings = [
        "images", "method", "forgotten, before", "after", "others, before", "after", "zero", "seeds"
    ]  # fmt: skip
    return Page([Grid("Classes forgotten", headings, table)], lines, f"{len(rows)} trainings")


def _cell(rows: Sequence[Row], name: str) -> Cell:
    return Cell(spread([row[name] for row in rows], percent=True))


def _key(row: Row) -> tuple[str, int, int]:
    return row["method"], row["shots"], row["seed"]


def _words(row: Row) -> str:
    who = f"{row['method']} {row['shots'] or 'all'} seed {row['seed']}"
    if "error" in row:
        return f"{who}: {row['error']}"
    return f"{who}: {row['forgotten']:.1%} and {row['others']:.1%}, {row['zero']} zero"
