"""All recipes side by side: ``gossamer compare-recipes``.

A small GPT is trained on the same batches from the same dense weights by every recipe, at several
sparsities, with several seeds. What a recipe leaves in the end is evaluated. Trainings run in
processes of one thread each; the time of a step is measured afterwards, with nothing else running.
Every row is on the disk before the next begins, and is not made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from gossamer.bench import machine
from gossamer.bench.recipes_report import publish
from gossamer.bench.recipes_run import (
    Cell,
    Plan,
    Row,
    become_worker,
    fingerprint,
    measure,
    time_step,
)
from gossamer.errors import CheckpointError, GossamerError, RecipeError, ShapeError
from gossamer.recipes.base.registry import RECIPES, entry
from gossamer.train.checkpoint import write_atomically
from gossamer.train.metrics import read_metrics
from gossamer.train.spec import DENSE

SCHEMA = 1
INTERRUPTED = 130
NAME = "compare-recipes"
SPARSITIES = (50, 75, 90)


def compare(
    out: Path,
    plan: Plan | None = None,
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
        plan: what everybody trains.
        recipes: their names; all when empty.
        sparsities: of 50, 75 and 90 percent.
        seeds: trainings of each recipe and sparsity, from seed 0.
        jobs: trainings at the same time, each on one thread; 1 trains in this process.
        overwrite: begin anew.
        console: where to print; standard output by default.

    Returns:
        0; 130 if interrupted, with all that was trained so far written.

    Raises:
        CheckpointError: the folder holds rows of other options, another text or version.
        GossamerError: an option is out of range, or the folder cannot be written.
    """
    plan, console = plan or Plan(), console or Console()
    for name, value in (("steps", plan.steps), ("seeds", seeds), ("jobs", jobs)):
        if value < 1:
            raise ShapeError(f"compare-recipes got {name}={value}; it must be at least 1")
    names = list(dict.fromkeys(_known(name) for name in recipes)) or list(RECIPES)
    for sparsity in sparsities:
        if sparsity not in SPARSITIES:
            raise ShapeError(
                f"compare-recipes got the density {sparsity}; choose of {list(SPARSITIES)}, the "
                "percent that are dropped"
            )
    path = out / f"{NAME}.jsonl"
    rows = _begin(path, plan, overwrite)
    grid = cells(names, sparsities, range(seeds))
    timed = cells(names, sparsities, range(1))
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
                console.print(_told(row), highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        stopped = True
    wanted = {(c.recipe, c.sparsity) for c in grid}
    shown = [r for r in rows if (r["recipe"], r["sparsity"]) in wanted and r["seed"] < seeds]
    written = publish(shown, _header(plan), path, console)
    console.print("   ".join(map(str, [path, *written])), highlight=False, soft_wrap=True)
    if stopped:
        console.print("stopped; the same command trains what is missing", highlight=False)
    return INTERRUPTED if stopped else 0


def cells(recipes: Iterable[str], sparsities: Iterable[int], seeds: Iterable[int]) -> list[Cell]:
    """Everything that is trained: dense, then seed by seed, so that a part of it is a table too.

    Example:
        >>> [cell.run for cell in cells(["srste"], [50, 75], [0])]
        ['dense', 'srste@2:4', 'srste@1:4']
    """
    recipes, sparsities = list(recipes), list(sparsities)
    return [
        cell
        for seed in seeds
        for cell in (
            Cell(DENSE, 0, seed),
            *(Cell(recipe, sparsity, seed) for sparsity in sparsities for recipe in recipes),
        )
    ]


def _known(name: str) -> str:
    one = entry(name)
    return next(known for known, other in RECIPES.items() if other is one)


def _rows(
    work: Callable[[Plan, Cell], Row], plan: Plan, missing: Sequence[Cell], jobs: int
) -> Iterator[Row]:
    if jobs == 1:
        for cell in missing:
            yield work(plan, cell)
        return
    waiting = list(missing)
    alone: list[Cell] = []  # they ran when a process died: who of them it was shows by itself
    while waiting or alone:
        batch, workers = (alone[:1], 1) if alone else (waiting, jobs)
        running: dict[Future[Row], Cell] = {}
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
                    cell = alone.pop(0)
                    yield cell.row | {"error": "its process died"}
                else:
                    alone = list(running.values())


def _told(row: Row) -> str:
    who = f"{row['recipe']} {row['sparsity']} % seed {row['seed']}"
    if "error" in row:
        return f"{who}: FAILED, {row['error']}"
    if "timing" in row:
        return f"{who}: {row['step_seconds'] / row['dense_seconds']:.2f} of a dense step"
    return f"{who}: validation loss {row['val_loss']:.4f}"


def _key(row: Row) -> tuple[str, int, int, bool]:
    return row["recipe"], row["sparsity"], row["seed"], row.get("timing", False)


def _header(plan: Plan) -> Row:
    """What must be the same for rows to stand in one table."""
    return {
        "schema": SCHEMA, "plan": asdict(plan), "text": fingerprint(plan),
        "versions": machine.versions(()), "cpu": machine.cpu_name(),
    }  # fmt: skip


def _begin(path: Path, plan: Plan, overwrite: bool) -> list[Row]:
    """The rows of an earlier call, or a new file."""
    header = _header(plan)
    rows: list[Row] = []
    if path.exists() and not overwrite:
        earlier, *rows = read_metrics(path) or [{}]
        for name, mine in header.items():
            if earlier.get(name) != mine:
                raise CheckpointError(
                    f"{path} has {name} {earlier.get(name)}, this call {mine}; use the same, or "
                    "begin anew with --overwrite or another --out"
                )
    text = "".join(json.dumps(row) + "\n" for row in [header, *rows])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise GossamerError(
            f"{path} cannot be written: {error.strerror}; choose another --out"
        ) from error
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
