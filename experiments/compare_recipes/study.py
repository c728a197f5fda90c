"""All recipes side by side: a small GPT, trained from the same dense weights by every recipe.

All see the same batches, at several sparsities, with several seeds. The finished model of a recipe
is evaluated. Trainings run in processes of one thread each; the time of a step is measured
afterwards, with nothing else running. Every row is on the disk before the next begins, and is not
made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from bench.harness import machine
from bench.harness.results import write_text
from bench.harness.run import INTERRUPTED
from bench.harness.tables import publish
from experiments.compare_recipes.page import page, plot
from experiments.compare_recipes.training import (
    DENSE,
    FIELDS,
    PLAN,
    Row,
    Training,
    become_worker,
    fingerprint,
    measure,
    time_step,
)
from gossamer import ArgumentError, CheckpointError, RecipeError
from gossamer.recipes import RECIPES, entry
from gossamer.train import TrainConfig, read_metrics

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
        overwrite: drop what the folder holds.
        console: where to print; standard output by default.

    Returns:
        0; 130 if interrupted, with all that was trained so far written.

    Raises:
        CheckpointError: the folder holds rows of other options, another text or version.
        GossamerError: an option is out of range, or the folder cannot be written.
    """
    console = console or Console()
    for name, value in (("seeds", seeds), ("jobs", jobs)):
        if value < 1:
            raise ArgumentError(f"compare-recipes got {name}={value}; it must be at least 1")
    names = list(dict.fromkeys(_known(name) for name in recipes)) or list(RECIPES)
    for sparsity in sparsities:
        if sparsity not in SPARSITIES:
            raise ArgumentError(
                f"compare-recipes got the density {sparsity}; choose of {list(SPARSITIES)}, the "
                "percent that are dropped"
            )
    path = out / f"{NAME}.jsonl"
    rows = _begin(path, plan, overwrite)
    grid = trainings(names, sparsities, range(seeds))
    timed = trainings(names, sparsities, range(1))
    done = {_key(row) for row in rows if "error" not in row}
    plans = [
        (measure, [c for c in grid if _key(c.row) not in done], jobs),
        (time_step, [c for c in timed if _key(c.row | {"timing": True}) not in done], 1),
    ]
    stopped = False
    try:
        for work, missing, workers in plans:
            for row in _rows(work, plan, missing, workers):
                rows = [r for r in rows if _key(r) != _key(row)] + [row]
                _append(path, row)
                console.print(_words(row), highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        stopped = True
    wanted = {(c.recipe, c.sparsity) for c in grid}
    shown = [r for r in rows if (r["recipe"], r["sparsity"]) in wanted and r["seed"] < seeds]
    written = [publish(page(shown, _header(plan)), path, console)]
    picture = path.with_suffix(".png")
    if plot(shown, picture):
        written.append(picture)
    console.print("   ".join(map(str, [path, *written])), highlight=False, soft_wrap=True)
    if stopped:
        console.print("stopped; the same command trains what is missing", highlight=False)
    return INTERRUPTED if stopped else 0


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


def _rows(
    work: Callable[[TrainConfig, Training], Row],
    plan: TrainConfig,
    missing: Sequence[Training],
    jobs: int,
) -> Iterator[Row]:
    if jobs == 1:
        for one in missing:
            yield work(plan, one)
        return
    waiting = list(missing)
    alone: list[Training] = []  # they ran when a process died: each runs alone, to find which
    while waiting or alone:
        batch, workers = (alone[:1], 1) if alone else (waiting, jobs)
        running: dict[Future[Row], Training] = {}
        with ProcessPoolExecutor(workers, get_context("spawn"), become_worker) as pool:
            try:
                while batch or running:
                    while batch and len(running) < workers:
                        running[pool.submit(work, plan, batch[0])] = batch[0]
                        del batch[0]
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        row = future.result()
                        del running[future]
                        yield row
                if workers == 1:
                    del alone[0]
            except BrokenProcessPool:
                if workers == 1:
                    one = alone.pop(0)
                    yield one.row | {"error": "its process died"}
                else:
                    alone = list(running.values())


def _words(row: Row) -> str:
    who = f"{row['recipe']} {row['sparsity']} % seed {row['seed']}"
    if "error" in row:
        return f"{who}: FAILED, {row['error']}"
    if "timing" in row:
        return f"{who}: {row['step_seconds'] / row['dense_seconds']:.2f} of a dense step"
    return f"{who}: validation loss {row['val_loss']:.4f}"


def _key(row: Row) -> tuple[str, int, int, bool]:
    return row["recipe"], row["sparsity"], row["seed"], row.get("timing", False)


def _header(plan: TrainConfig) -> Row:
    """What must be the same for rows to stand in one table."""
    return {
        "schema": SCHEMA, "plan": {name: getattr(plan, name) for name in FIELDS},
        "text": fingerprint(plan),
        "versions": machine.versions(()), "cpu": machine.cpu_name(),
    }  # fmt: skip


def _begin(path: Path, plan: TrainConfig, overwrite: bool) -> list[Row]:
    """The rows of an earlier call, or a new file."""
    header = _header(plan)
    rows: list[Row] = []
    if path.exists() and not overwrite:
        earlier, *rows = read_metrics(path) or [{}]
        for name, mine in header.items():
            if earlier.get(name) != mine:
                raise CheckpointError(
                    f"{path} has {name} {earlier.get(name)}, this call {mine}; use the same, or "
                    "start again with --overwrite or another --out"
                )
    text = "".join(json.dumps(row) + "\n" for row in [header, *rows])
    write_text(path, text)
    return rows


def _append(path: Path, row: Row) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


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
