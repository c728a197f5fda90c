"""All recipes side by side: a small GPT, trained from the same dense weights by every recipe.

All see the same batches, at several sparsities, with several seeds. The finished model of a recipe
is evaluated. Trainings run in processes of one thread each; the time of a step is measured
afterwards, with nothing else running. Every row is on the disk before the next begins, and is not
made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from bench.harness.rows import Row, Work, check_counts, collect, header_of, present
from experiments.compare_recipes.page import page, plot
from experiments.compare_recipes.training import (
    DENSE,
    FIELDS,
    PLAN,
    Training,
    fingerprint,
    measure,
    time_step,
)
from gossamer import ArgumentError, RecipeError
from gossamer.recipes import RECIPES, entry
from gossamer.train import TrainConfig

SCHEMA = 1
NAME = "compare-recipes"
SPARSITIES = (50, 75, 90)


def compare(
    out: Path,
    plan: TrainConfig = PLAN,
    *,
    recipes: Sequence[str] = (),
    sparsities: Sequence[int] = SPARSITIES,
    seeds: int = 3,
    jobs: int = 2,
    scale_lr: Sequence[float] = (),
    overwrite: bool = False,
    console: Console | None = None,
) -> int:
    """Train everything that is missing; write the rows, the table and the picture.

    Args:
        out: folder of the results; what it holds of the same plan is kept.
        plan: what every recipe trains.
        recipes: their names; all when empty.
        sparsities: of 50, 75 and 90 percent.
        seeds: trainings of each recipe and sparsity, from seed 0.
        jobs: trainings at the same time, each on one thread; 1 trains in this process.
        scale_lr: exponents of the density in the learning rate; every recipe is trained with each
            of them as well.
        overwrite: drop what the folder holds.
        console: where to print; standard output by default.

    Returns:
        0; 130 if interrupted, with all that was trained so far written.

    Raises:
        CheckpointError: the folder holds rows of other options, another text or version.
        GossamerError: an option is out of range, or the folder cannot be written.
    """
    console = console or Console()
    check_counts(NAME, seeds=seeds, jobs=jobs)
    names = list(dict.fromkeys(_known(name) for name in recipes)) or list(RECIPES)
    for sparsity in sparsities:
        if sparsity not in SPARSITIES:
            raise ArgumentError(
                f"compare-recipes got the density {sparsity}; choose of {list(SPARSITIES)}, the "
                "percent that are dropped"
            )
    path = out / f"{NAME}.jsonl"
    grid = trainings(names, sparsities, range(seeds))
    scaled = [
        replace(one, scale_lr=exponent)
        for exponent in dict.fromkeys(scale_lr)
        for one in grid
        if exponent and one.recipe != DENSE
    ]
    timed = [replace(one, timing=True) for one in trainings(names, sparsities, range(1))]
    works = [
        Work(partial(measure, plan), [*grid, *scaled], jobs),
        Work(partial(time_step, plan), timed, 1),
    ]
    rows, stopped = collect(
        path, _header(plan), works, _key, _words, overwrite=overwrite, console=console
    )
    wanted = {(c.recipe, c.sparsity) for c in grid}
    shown = [r for r in rows if (r["recipe"], r["sparsity"]) in wanted and r["seed"] < seeds]
    return present(path, page(shown, _header(plan)), partial(plot, shown), stopped, console)


def trainings(
    recipes: Iterable[str], sparsities: Iterable[int], seeds: Iterable[int]
) -> list[Training]:
    """Everything that is trained: dense, then seed by seed, so that a part of it is a table too.

    Example:
        >>> [one.run for one in trainings(["srste"], [50, 75], [0])]
        ['dense', 'srste@2:4', 'srste@1:4']
    """
    recipes, sparsities = list(recipes), list(sparsities)
    return [
        one
        for seed in seeds
        for one in (
            Training(DENSE, 0, seed),
            *(Training(recipe, sparsity, seed) for sparsity in sparsities for recipe in recipes),
        )
    ]


def _known(name: str) -> str:
    one = entry(name)
    return next(known for known, other in RECIPES.items() if other is one)


def _words(row: Row) -> str:
    who = f"{row['recipe']} {row['sparsity']} % seed {row['seed']}"
    if row.get("scale_lr"):
        who += f" scale_lr {row['scale_lr']:g}"
    if "error" in row:
        return f"{who}: FAILED, {row['error']}"
    if "timing" in row:
        return f"{who}: {row['step_seconds'] / row['dense_seconds']:.2f} of a dense step"
    return f"{who}: validation loss {row['val_loss']:.4f}"


def _key(row: Row) -> tuple[str, int, int, float, bool]:
    exponent = row.get("scale_lr", 0.0)
    return row["recipe"], row["sparsity"], row["seed"], exponent, row.get("timing", False)


def _header(plan: TrainConfig) -> Row:
    """What must be the same for rows to stand in one table."""
    fields = {name: getattr(plan, name) for name in FIELDS}
    return header_of(SCHEMA, fields, text=fingerprint(plan))


def numbers(text: str, what: str) -> list[int]:
    """Whole numbers from "50,75,90".

    Raises:
        RecipeError: something else stands there.

    Example:
        >>> numbers("50, 90%", "densities")
        [50, 90]
    """
    try:
        return [int(part.strip().removesuffix("%")) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"--{what} got {text!r:.80}; write whole numbers, as 50,75,90") from None
