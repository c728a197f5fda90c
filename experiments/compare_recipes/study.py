"""All recipes side by side: a small GPT, trained from the same dense weights by every recipe.

All see the same batches, at several sparsities, with several seeds, each at a learning rate that
short trainings have chosen. The finished model of a recipe is evaluated. Trainings run in processes
of one thread each; the time of a step is measured afterwards, with nothing else running. Every row
is on the disk before the next begins, and is not made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.harness.rows import Row, Work, check_counts, collect, header_of, present
from experiments.compare_recipes.page import page, plot
from experiments.compare_recipes.training import (
    DENSE,
    FIELDS,
    PLAN,
    TIMED,
    Stage,
    Training,
    fingerprint,
    measure,
    parts_of,
    time_step,
)
from gossamer import ArgumentError, RecipeError
from gossamer.recipes import RECIPES, entry
from gossamer.train import TrainConfig

SCHEMA = 2
NAME = "compare-recipes"
SPARSITIES = (50, 75, 90)
TUNED = 150  # steps of a training that chooses a rate

Pair = tuple[str, int]  # recipe, sparsity


def compare(
    out: Path,
    plan: TrainConfig = PLAN,
    *,
    recipes: Sequence[str] = (),
    sparsities: Sequence[int] = SPARSITIES,
    seeds: int = 2,
    jobs: int = 2,
    rates: Sequence[float] = (PLAN.lr,),
    tune_steps: int = TUNED,
    times: bool = True,
    overwrite: bool = False,
    console: Console | None = None,
) -> int:
    """Train everything that is missing; write the rows, the table and the picture.

    Of several rates each recipe gets at each density the one of lowest loss in a short training
    with seed 0.

    Args:
        out: folder of the results; what it holds of the same plan is kept.
        plan: what every recipe trains; its learning rate does not count.
        recipes: their names; all when empty.
        sparsities: of 50, 75 and 90 percent.
        seeds: trainings of each recipe and sparsity, from seed 0.
        jobs: trainings at the same time, each on one thread; 1 trains in this process.
        rates: peak learning rates to choose from.
        tune_steps: of a training that chooses; one rate needs none.
        times: whether to time the steps of what was not timed yet; nothing else should run then.
        overwrite: drop what the folder holds.
        console: where to print; standard output by default.

    Returns:
        0; 130 if interrupted, with all that was trained so far written.

    Raises:
        CheckpointError: the folder holds rows of other options, another text or version.
        GossamerError: an option is out of range, or the folder cannot be written.
    """
    console = console or Console()
    check_counts(NAME, seeds=seeds, jobs=jobs, tune_steps=tune_steps)
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        raise ArgumentError(f"compare-recipes got the rates {list(rates)}; they must be above 0")
    names = list(dict.fromkeys(_known(name) for name in recipes)) or list(RECIPES)
    for sparsity in sparsities:
        if sparsity not in SPARSITIES:
            raise ArgumentError(
                f"compare-recipes got the density {sparsity}; choose of {list(SPARSITIES)}, the "
                "percent that are dropped"
            )
    path, header = out / f"{NAME}.jsonl", _header(plan)
    pairs = [(DENSE, 0), *((name, sparsity) for sparsity in sparsities for name in names)]
    tuned = tunings(pairs, rates, tune_steps) if len(rates) > 1 else []

    def work(*works: Work[Training], overwrite: bool = False) -> tuple[list[Row], bool]:
        return collect(path, header, works, _key, _words, overwrite=overwrite, console=console)

    rows, stopped = work(Work(partial(measure, plan), tuned, jobs), overwrite=overwrite)
    best = best_rates(rows) if tuned else dict.fromkeys(pairs, rates[0])
    grid = trainings(pairs, range(seeds), plan.steps, best)
    timed = [replace(one, stage=Stage.TIME, steps=TIMED) for one in grid if one.seed == 0]
    if not stopped:
        works = [Work(partial(measure, plan), grid, jobs)]
        works += [Work(partial(time_step, plan), timed, 1)] if times else []
        rows, stopped = work(*works)
    wanted = {_key(one.row) for one in (*grid, *timed)}
    shown = [row for row in rows if _key(row) in wanted]
    return present(path, page(shown, header), partial(plot, shown), stopped, console)


def tunings(pairs: Iterable[Pair], rates: Sequence[float], steps: int) -> list[Training]:
    """The trainings that choose a rate.

    Example:
        >>> [one.lr for one in tunings([("dense", 0)], [0.1, 0.2], 5)]
        [0.1, 0.2]
    """
    rates = list(dict.fromkeys(rates))
    return [
        Training(who, sparsity, 0, steps, lr, Stage.TUNE) for who, sparsity in pairs for lr in rates
    ]


def best_rates(rows: Iterable[Row]) -> dict[Pair, float]:
    """The rate of lowest loss of each recipe and sparsity; those that never finished have none.

    Example:
        >>> row = {"recipe": "dense", "sparsity": 0, "stage": "tune"}
        >>> best_rates([row | {"lr": 0.1, "val_loss": 2.0}, row | {"lr": 0.2, "val_loss": 1.9}])
        {('dense', 0): 0.2}
    """
    lowest: dict[Pair, tuple[float, float]] = {}
    for row in rows:
        if row["stage"] == Stage.TUNE and "val_loss" in row:
            pair, found = (row["recipe"], row["sparsity"]), (row["val_loss"], row["lr"])
            lowest[pair] = min(found, lowest.get(pair, found))
    return {pair: rate for pair, (_, rate) in lowest.items()}


def trainings(
    pairs: Iterable[Pair], seeds: Iterable[int], steps: int, rates: Mapping[Pair, float]
) -> list[Training]:
    """Everything that is trained: seed by seed, so that a part of it is a table too.

    A recipe that sets weights back is trained a second time, as long as every part of it has all
    the steps.

    Example:
        >>> rates = {("dense", 0): 1e-3, ("imp", 50): 1e-3}
        >>> [(one.run, one.steps) for one in trainings(rates, [0], 100, rates)]
        [('dense', 100), ('imp@50%', 100), ('imp@50%', 500)]
    """
    pairs = list(pairs)
    found = []
    for seed in seeds:
        for who, sparsity in pairs:
            if (who, sparsity) not in rates:
                continue
            one = Training(who, sparsity, seed, steps, rates[who, sparsity])
            found.append(one)
            if (parts := parts_of(one)) > 1:
                found.append(replace(one, steps=parts * steps, stage=Stage.PARTS))
    return found


def _known(name: str) -> str:
    one = entry(name)
    return next(known for known, other in RECIPES.items() if other is one)


def _words(row: Row) -> str:
    who = (
        f"{row['recipe']} {row['sparsity']} % seed {row['seed']} rate {row['lr']:g} {row['stage']}"
    )
    if "error" in row:
        return f"{who}: FAILED, {row['error']}"
    if row["stage"] == Stage.TIME:
        return f"{who}: {row['step_seconds'] / row['dense_seconds']:.2f} of a dense step"
    return f"{who}: validation loss {row['val_loss']:.4f}"


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[field.name] for field in fields(Training))


def _header(plan: TrainConfig) -> Row:
    """What must be the same for rows to stand in one table."""
    shared = {name: getattr(plan, name) for name in FIELDS}
    return header_of(SCHEMA, shared, text=fingerprint(plan))


def numbers(text: str, what: str) -> list[float]:
    """Numbers from "50,75,90".

    Raises:
        RecipeError: something else stands there.

    Example:
        >>> numbers("50, 90%", "densities")
        [50.0, 90.0]
    """
    try:
        return [float(part.strip().removesuffix("%")) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"--{what} got {text!r:.80}; write numbers, as 50,75,90") from None
