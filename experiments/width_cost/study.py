"""What sharing columns costs in accuracy: V = 1 … 128 rows, and blocks, side by side.

Random static masks, and SR-STE, whose masks follow a dense weight, at two sparsities. The peak
learning rate of each recipe and sparsity, and of dense, is chosen first, at V = 4; the sparse
layers' own rate follows the density.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from bench.harness.rows import Row, Work, collect, header_of, present
from experiments.width_cost.page import page, plot
from experiments.width_cost.training import RECIPES, Plan, Training, corpus_of, measure
from gossamer import ArgumentError

SCHEMA = 1
NAME = "width-cost"
GROUPS = {50: "2:4", 75: "1:4"}
SPARSITIES = (75, 50)
VECTORS = (1, 4, 8, 16, 32, 64, 128)
BLOCKS = (16, 32, 64, 128)
LRS = (1e-3, 2e-3, 4e-3, 8e-3)
TUNED_AT = 4


def study(
    out: Path,
    plan: Plan | None = None,
    *,
    sparsities: Sequence[int] = SPARSITIES,
    vectors: Sequence[int] = VECTORS,
    blocks: Sequence[int] = BLOCKS,
    lrs: Sequence[float] = LRS,
    seeds: int = 2,
    jobs: int = 1,
    overwrite: bool = False,
    console: Console | None = None,
) -> int:
    """Train everything that is missing; write the rows, the table and the picture.

    Args:
        out: folder of the results; what it holds of the same plan is kept.
        plan: what every training has in common; None is the published one.
        sparsities: of 50 and 75 percent.
        vectors: rows that share their columns.
        blocks: sides of square blocks.
        lrs: peak learning rates to choose from.
        seeds: trainings of each, from seed 0, on which the rates are chosen.
        jobs: trainings at the same time, each on one thread.
        overwrite: drop what the folder holds.
        console: where to print; standard output by default.

    Returns:
        0; 130 if interrupted, with all that was trained so far written.

    Raises:
        CheckpointError: the folder holds rows of other options, another text or version.
        ArgumentError: an option is out of range.
    """
    console, plan = console or Console(), plan or Plan()
    # A shorter schedule has no step of warm-up.
    for name, value, least in (("seeds", seeds, 1), ("jobs", jobs, 1), ("steps", plan.steps, 12)):
        if value < least:
            raise ArgumentError(f"width-cost got {name}={value}; it must be at least {least}")
    path = out / f"{NAME}.jsonl"
    header = header_of(SCHEMA, plan.row, text=corpus_of(plan).fingerprint)
    make = partial(measure, plan)

    def go(wanted: Sequence[Training], fresh: bool) -> tuple[list[Row], bool]:
        work = Work(make, wanted, jobs)
        return collect(path, header, [work], _key, _words, overwrite=fresh, console=console)

    rows, stopped = go(tuning(sparsities, lrs), overwrite)
    if not stopped:
        rates = best_rates(rows)
        rows, stopped = go(grid(sparsities, vectors, blocks, rates, range(seeds)), False)
    return present(path, page(rows, header), partial(plot, rows), stopped, console)


def tuning(sparsities: Iterable[int], lrs: Iterable[float]) -> list[Training]:
    """The trainings by which learning rates are chosen."""
    kinds = [("dense", "dense")]
    kinds += [(who, f"{GROUPS[s]}:v{TUNED_AT}") for s in sparsities for who in RECIPES]
    return [Training(who, pattern, lr, 0) for who, pattern in kinds for lr in sorted(lrs)]


def best_rates(rows: Iterable[Row]) -> dict[tuple[str, int], float]:
    """The learning rate of the lowest loss, by recipe and sparsity in percent.

    Example:
        >>> rows = [{"recipe": "static", "pattern": "1:4:v4", "seed": 0, "lr": lr, "val_loss": loss}
        ...         for lr, loss in ((1e-3, 2.0), (2e-3, 1.9))]
        >>> best_rates(rows)
        {('static', 75): 0.002}
    """
    by_pattern = {f"{text}:v{TUNED_AT}": sparsity for sparsity, text in GROUPS.items()}
    by_pattern["dense"] = 0
    best: dict[tuple[str, int], Row] = {}
    for row in rows:
        if row["pattern"] in by_pattern and row["seed"] == 0 and "val_loss" in row:
            kind = row["recipe"], by_pattern[row["pattern"]]
            if kind not in best or row["val_loss"] < best[kind]["val_loss"]:
                best[kind] = row
    return {kind: row["lr"] for kind, row in best.items()}


def grid(
    sparsities: Iterable[int],
    vectors: Iterable[int],
    blocks: Iterable[int],
    rates: dict[tuple[str, int], float],
    seeds: Iterable[int],
) -> list[Training]:
    """Every pattern, seed by seed, so that a part of it is a table too."""
    sparsities, vectors, blocks = list(sparsities), list(vectors), list(blocks)
    found: list[Training] = []
    for seed in seeds:
        found.append(Training("dense", "dense", rates["dense", 0], seed))
        for sparsity in sparsities:
            # The ends first.
            patterns = [f"{GROUPS[sparsity]}:v{v}".removesuffix(":v1") for v in vectors]
            patterns += [f"block {side}x{side} {sparsity}%" for side in blocks]
            found += [
                Training(recipe, pattern, rates[recipe, sparsity], seed)
                for recipe in RECIPES
                for pattern in patterns
            ]
    return found


def _key(row: Row) -> tuple[str, str, float, int]:
    return row["recipe"], row["pattern"], row["lr"], row["seed"]


def _words(row: Row) -> str:
    who = f"{row['recipe']} {row['pattern']} lr {row['lr']:g} seed {row['seed']}"
    return f"{who}: {row.get('val_loss', 'diverged')}"
