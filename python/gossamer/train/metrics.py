"""metrics.jsonl: one JSON object per step and run, appended during training."""

import errno
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from gossamer.arguments import check
from gossamer.errors import CheckpointError
from gossamer.io.files import write_atomically

METRICS = "metrics.jsonl"  # file name in the folder of a training
# What every row has.
ROW = {"run", "step", "loss", "val_loss", "seconds", "tokens_per_second", "lr"}
Row = dict[str, Any]


class MetricsFile:
    """Append rows to a metrics file; a context manager.

    Args:
        path: the file.
        rows: rows with which it begins; see `rows_until`.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, rows: Sequence[Row] = ()) -> None:
        self.path = path
        text = _lines(rows)
        write_atomically(path, lambda temporary: temporary.write_bytes(text))
        self._file: FileIO = path.open("ab", buffering=0)
        self.unsafe: list[Row] = []  # rows that may not be on the disk yet

    def append(self, rows: Sequence[Row]) -> None:
        """Write the rows of a step: `run, step, loss, val_loss, seconds, tokens_per_second, lr`.

        A router adds `expert_load`, the share of tokens per expert, one list per block; sparse
        activations add `live`, the share of live ones per block, and `strength`, that of the
        penalty. A row with
        `val_loss` also has `val_expert_load` with a router; `density, kept_groups, groups` of the
        penalised weights with a penalty; and with a recipe `masks`, the result of
        `Diagnostics.measure` with flips since the last evaluation.

        Raises:
            OSError: they cannot be written whole; the file keeps the steps before.
        """
        self.unsafe += rows
        text = _lines(rows)
        size = self._file.seek(0, os.SEEK_END)
        try:
            written = self._file.write(text)
            if written != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        except OSError:
            with suppress(OSError):
                self._file.truncate(size)
            raise

    def sync(self) -> None:
        """Wait until all rows are on the disk.

        Raises:
            OSError: they cannot be written.
        """
        os.fsync(self._file.fileno())
        self.unsafe.clear()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


class NoMetrics(MetricsFile):
    """The metrics of a process that writes no files."""

    def __init__(self) -> None:
        self.unsafe = []

    def append(self, rows: Sequence[Row]) -> None:
        """Do nothing."""

    def sync(self) -> None:
        """Do nothing."""

    def __exit__(self, *_: object) -> None:
        """Do nothing."""


def rows_until(
    path: Path, turns: Sequence[tuple[int, str]], unwritten: Sequence[Row] = ()
) -> list[Row]:
    """The checked rows of the finished steps of a training that continues.

    Args:
        path: the metrics file.
        turns: step and run of each row, in order.
        unwritten: last rows that a checkpoint holds, because the file could not be written.

    Returns:
        One row per step and run, in order.

    Raises:
        CheckpointError: the file is missing, or a row is missing, damaged, doubled or misplaced.
    """
    # Whatever follows those rows is written anew.
    rows = [*read_metrics(path, len(turns) - len(unwritten)), *unwritten]
    for place, (row, (number, run)) in enumerate(zip(rows, turns, strict=False), 1):
        if (row["step"], row["run"]) != (number, run) or not _is_whole(row):
            raise CheckpointError(
                f"metrics {path}: row {place} is not the whole row of step {number} and run {run} "
                f"but has step {row['step']} and run {row['run']!r:.40}; the file was altered: use "
                "another copy"
            )
    if len(rows) != len(turns):
        raise CheckpointError(
            f"metrics {path} has {len(rows)} rows, needed are {len(turns)}; the "
            "file was altered: use another copy"
        )
    return rows


def _is_whole(row: Row) -> bool:
    numbers = [row.get(name) for name in ROW - {"run"} if name != "val_loss"]
    numbers += [] if row.get("val_loss", "") is None else [row.get("val_loss")]
    return all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers)


def _lines(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def busiest(load: Sequence[Sequence[float]]) -> float:
    """Return the load of the busiest expert per block, averaged over the blocks.

    Args:
        load: share of tokens per expert, one list per block.

    Returns:
        The share of the busiest expert over an even share; 1 when all loads are equal.

    Example:
        >>> busiest([[0.5, 0.25, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25]])
        1.5
    """
    return sum(max(shares) * len(shares) for shares in load) / len(load)


def read_metrics(path: str | Path, limit: int | None = None) -> list[Row]:
    """Read a metrics file.

    Args:
        path: the file.
        limit: most rows to read; None reads all.

    Returns:
        The rows. An incomplete last line, as left by a killed process, is skipped.

    Raises:
        CheckpointError: the file is missing, or another line is damaged.
    """
    check(read_metrics, locals())
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1][:limit]
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"metrics {path} cannot be read ({error}); the file must be beside the checkpoint"
        ) from error
    for place, row in enumerate(rows, 1):
        if not isinstance(row, dict) or type(row.get("step")) is not int or "run" not in row:
            raise CheckpointError(
                f"metrics {path}: row {place} has no step and run; the file was altered: use "
                "another copy"
            )
    return rows
