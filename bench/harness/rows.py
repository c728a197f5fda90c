"""Rows of many trainings as JSON lines: each is on the disk before the next begins.

The first line says what the rows have in common. A file is continued by the same call, and rows
that it holds are not made again.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from rich.console import Console

from bench.harness import machine
from bench.harness.results import write_text
from bench.harness.run import INTERRUPTED
from bench.harness.tables import Page, publish
from gossamer import ArgumentError, CheckpointError

Row = dict[str, Any]


class Training(Protocol):
    """Something that is trained, and makes one row."""

    @property
    def row(self) -> Row:
        """The columns that name it."""


One = TypeVar("One", bound=Training)


@dataclass(frozen=True)
class Work(Generic[One]):
    """Trainings, and what makes a row of each.

    Args:
        make: of a training; it runs in other processes if there are several jobs, so it and the
            trainings must be picklable.
        trainings: in their order.
        jobs: trainings at the same time, each on one thread; 1 trains in this process.
    """

    make: Callable[[One], Row]
    trainings: Sequence[One]
    jobs: int = 1


def read_rows(path: Path) -> list[Row]:
    """Read JSON lines.

    Args:
        path: the file.

    Returns:
        The rows. An incomplete last line, as left by a killed process, is skipped.

    Raises:
        CheckpointError: the file is missing, or another line is damaged.
    """
    try:
        rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"rows {path} cannot be read ({error}); give another folder, or overwrite it"
        ) from error
    if not all(isinstance(row, dict) for row in rows):
        raise CheckpointError(f"rows {path} hold something else than JSON objects: overwrite it")
    return rows


def collect(
    path: Path,
    header: Row,
    works: Sequence[Work[Any]],
    key: Callable[[Row], Hashable],
    words: Callable[[Row], str],
    *,
    overwrite: bool = False,
    console: Console,
) -> tuple[list[Row], bool]:
    """Make every row that a file misses; a row with "error" is made again.

    Args:
        path: of the JSON lines.
        header: what must be the same for rows to stand in one file.
        works: what makes the rows, one after the other.
        key: of a row; of rows with one key the last counts.
        words: what is printed of a row.
        overwrite: drop what the file holds.
        console: where to print.

    Returns:
        All rows of the file, and whether an interrupt ended the call.

    Raises:
        CheckpointError: the file has another header, or cannot be read.
    """
    rows = begin(path, header, overwrite)
    done = {key(row) for row in rows if "error" not in row}
    try:
        for work in works:
            missing = [one for one in work.trainings if key(one.row) not in done]
            for row in work_off(work.make, missing, work.jobs):
                rows = [r for r in rows if key(r) != key(row)] + [row]
                _append(path, row)
                console.print(words(row), highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        return rows, True
    return rows, False


def check_counts(who: str, **counts: int) -> None:
    """Raise ArgumentError unless each number is at least 1."""
    for name, value in counts.items():
        if value < 1:
            raise ArgumentError(f"{who} got {name}={value}; it must be at least 1")


def header_of(schema: int, plan: Row, **more: Any) -> Row:
    """The first line of a file: what was asked for, and where it is made."""
    return {
        "schema": schema, "plan": plan, **more,
        "versions": machine.versions(()), "cpu": machine.cpu_name(),
    }  # fmt: skip


def made_on(header: Mapping[str, Any], how: str) -> str:
    """A line for a page: where rows were made, how, and by which versions."""
    versions = ", ".join(f"{who} {number}" for who, number in header["versions"].items())
    return f"{header['cpu']}, {how}; {versions}"


def begin(path: Path, header: Row, overwrite: bool) -> list[Row]:
    """The rows of an earlier call, or a new file.

    Raises:
        CheckpointError: the file has another header.
    """
    rows: list[Row] = []
    if path.exists() and not overwrite:
        earlier, *rows = read_rows(path) or [{}]
        for name, mine in header.items():
            if earlier.get(name) != mine:
                raise CheckpointError(
                    f"{path} has {name} {earlier.get(name)}, this call {mine}; use the same, or "
                    "start again with --overwrite or another --out"
                )
    write_text(path, "".join(json.dumps(row) + "\n" for row in [header, *rows]))
    return rows


def work_off(make: Callable[[One], Row], missing: Sequence[One], jobs: int) -> Iterator[Row]:
    """Make the rows of trainings; a process that dies costs its own row only.

    Args:
        make: makes the row of a training.
        missing: the trainings.
        jobs: processes.

    Yields:
        Rows, as they are finished.
    """
    if jobs == 1:
        for one in missing:
            yield make(one)
        return
    waiting = list(missing)
    alone: list[One] = []  # they ran when a process died: each runs alone, to find which
    while waiting or alone:
        batch, workers = (alone[:1], 1) if alone else (waiting, jobs)
        running: dict[Future[Row], One] = {}
        with ProcessPoolExecutor(workers, get_context("spawn"), _become_worker) as pool:
            try:
                while batch or running:
                    while batch and len(running) < workers:
                        running[pool.submit(make, batch[0])] = batch[0]
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


def _become_worker() -> None:
    """Make a process fit for a training: one thread; signals are left to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _append(path: Path, row: Row) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def carry_out(
    path: Path,
    header: Row,
    works: Sequence[Work[Any]],
    key: Callable[[Row], Hashable],
    words: Callable[[Row], str],
    page: Callable[[Sequence[Row], Row], Page],
    *,
    overwrite: bool = False,
    console: Console,
) -> int:
    """Make every row that a file misses, and write the page of all: `collect` and `present`.

    Args:
        path: of the JSON lines.
        header: what must be the same for rows to stand in one file.
        works: what makes the rows, one after the other.
        key: of a row; of rows with one key the last counts.
        words: what is printed of a row.
        page: of all rows and the header.
        overwrite: drop what the file holds.
        console: where to print.

    Returns:
        The exit status: 0; 130 if stopped.

    Raises:
        CheckpointError: the file has another header, or cannot be read.
    """
    rows, stopped = collect(path, header, works, key, words, overwrite=overwrite, console=console)
    return present(path, page(rows, header), lambda _: False, stopped, console)


def present(
    path: Path, page: Page, draw: Callable[[Path], bool], stopped: bool, console: Console
) -> int:
    """Write the page and the picture of rows beside them, and print where they are.

    Args:
        path: of the rows.
        page: of the rows.
        draw: a picture to a path; returns whether there was anything to draw.
        stopped: whether an interrupt ended the trainings.
        console: where to print.

    Returns:
        The exit status: 0; 130 if stopped.
    """
    written = [path, publish(page, path, console)]
    picture = path.with_suffix(".png")
    if draw(picture):
        written.append(picture)
    console.print("   ".join(map(str, written)), highlight=False, soft_wrap=True)
    if stopped:
        console.print("stopped; the same command trains what is missing", highlight=False)
    return INTERRUPTED if stopped else 0
