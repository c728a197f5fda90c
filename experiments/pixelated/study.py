"""Loss of a small GPT of flat block butterflies beside random blocks and dense, at equal steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from rich.console import Console

from bench.harness.rows import Row, Work, carry_out, check_counts, header_of, made_on
from bench.harness.tables import Cell, Grid, Page
from experiments.pixelated.training import DENSE, METHODS, Plan, Training, corpus_of, measure

SCHEMA = 1
NAME = "pixelated"


def study(
    out: Path,
    plan: Plan | None = None,
    *,
    seeds: int = 2,
    jobs: int = 1,
    overwrite: bool = False,
    console: Console | None = None,
) -> int:
    """Train everything that is missing; write the rows and the table.

    Args:
        out: folder of the results; what it holds of the same plan is kept.
        plan: what is trained.
        seeds: trainings of each method, from seed 0.
        jobs: trainings at the same time, each on one thread.
        overwrite: drop what the folder holds.
        console: where to print; standard output by default.

    Returns:
        0; 130 if interrupted, with all that was done so far written.

    Raises:
        CheckpointError: the folder holds rows of other options, another text or version.
        ArgumentError: a number of seeds or jobs below 1.
    """
    plan, console = plan or Plan(), console or Console()
    check_counts(NAME, seeds=seeds, jobs=jobs)
    path = out / f"{NAME}.jsonl"
    header = header_of(SCHEMA, plan.row, text=corpus_of(plan).fingerprint)
    grid = [Training(method, seed) for seed in range(seeds) for method in METHODS]
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
    """Lay out the rows: a line per method."""
    plan = header["plan"]
    seeds = len({row["seed"] for row in rows})
    lines = [
        made_on(header, "one thread"),
        f"GPT of width {plan['width']}, depth {plan['depth']}, byte level, {plan['steps']} steps "
        f"of {plan['batch'] * plan['context']} tokens at a peak rate of {plan['lr']:g}; the layers "
        "of the blocks from scratch, embedding and head dense",
        f"validation loss in nats per byte, the mean of {seeds} seeds; weights: of the layers of "
        "the blocks, of the dense ones",
    ]
    base = [row["val_loss"] for row in rows if row["method"] == DENSE]
    table = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        losses = [row["val_loss"] for row in own]
        apart = "–" if not base else f"{fmean(losses) - fmean(base):+.4f}"
        every = ", ".join(f"{loss:.4f}" for loss in losses)
        cells = [method, f"{own[0]['density']:.1%}", f"{fmean(losses):.4f}", apart, every]
        table.append([Cell(text) for text in cells])
    headings = ["layers", "weights", "loss", "to dense", "by seed"]
    return Page([Grid("Loss", headings, table)], lines, f"{len(rows)} trainings")


def _key(row: Row) -> tuple[str, int]:
    return row["method"], row["seed"]


def _words(row: Row) -> str:
    return f"{row['method']} seed {row['seed']}: {row['val_loss']:.4f}, {row['density']:.1%}"
