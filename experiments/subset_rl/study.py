"""Which entries reinforcement learning moves, and whether chosen ones alone suffice."""

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
from experiments.subset_rl.training import FULL, MASKS, Plan, Run, measure

SCHEMA = 1
NAME = "subset-rl"


def study(
    out: Path,
    plan: Plan | None = None,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    console: Console | None = None,
) -> int:
    """Train everything that is missing; write the rows and the table.

    Args:
        out: folder of the results; what it holds of the same plan is kept.
        plan: what is trained.
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
    check_counts(NAME, seeds=plan.seeds, jobs=jobs)
    path = out / f"{NAME}.jsonl"
    grid = [Run(masks, seed) for seed in range(plan.seeds) for masks in (FULL, *MASKS)]
    return carry_out(
        path, header_of(SCHEMA, asdict(plan)), [Work(partial(measure, plan), grid, jobs)],
        lambda row: (row["masks"], row["seed"]), _words, page,
        overwrite=overwrite, console=console,
    )  # fmt: skip


def page(rows: Sequence[Row], header: Row) -> Page:
    """Lay out the rows."""
    plan = header["plan"]
    rows = [row for row in rows if "error" not in row]
    lines = [
        made_on(header, "one thread"),
        f"GPT of width {plan['width']}, depth {plan['depth']}, sorts {plan['digits']} digits: "
        f"{plan['supervised']} supervised steps, then {plan['steps']} of REINFORCE (AdamW, rate "
        f"{plan['lr']:g}, {plan['prompts']} prompts with {plan['samples']} samples) on the linear "
        "layers of the blocks, of which all entries train, or a share of "
        f"{plan['share']:.0%}; mean ± standard deviation over {plan['seeds']} seeds",
        "difference: the entries that the full training of the same seed moves most; Fisher: the "
        "largest mean squared gradients of 64 prompts",
        "reward: share of right positions of the most probable answers to other prompts; changed: "
        "share of all entries that moved by more than 1e-5, and of those that differ in bfloat16",
        "overlap: of the entries that train with those that the full training of the same seed "
        "moves most; in the first line, of those with another seed's; chance: of random entries",
        "rank: stable rank of the update over the width, mean of the layers",
    ]
    table = []
    for kind in (FULL, *MASKS):
        own = [row for row in rows if row["masks"] == kind]
        if own:
            table.append([
                Cell(kind), Cell(f"{fmean(r['before'] for r in own):.4f}"), _cell(own, "reward", 4),
                _cell(own, "changed float32", 3), _cell(own, "changed bfloat16", 3),
                _cell(own, "overlap", 3), Cell(f"{fmean(r['chance'] for r in own):.3f}"),
                _cell(own, "rank", 3),
            ])  # fmt: skip
    headings = [
        "entries that train", "reward before", "reward", "changed, > 1e-5", "changed, bfloat16",
        "overlap", "chance", "rank",
    ]  # fmt: skip
    return Page(
        [Grid("Entries that reinforcement learning moves", headings, table)],
        lines,
        f"{len(rows)} trainings",
    )


def _cell(rows: Sequence[Row], name: str, digits: int) -> Cell:
    return Cell(spread([row[name] for row in rows], digits))


def _words(row: Row) -> str:
    result = row.get("error") or f"{row['reward']:.4f}"
    return f"{row['masks']} seed {row['seed']}: {result}"
