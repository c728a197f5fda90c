"""metrics.jsonl: one JSON object a step and run, appended as training goes."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from gossamer.errors import CheckpointError
from gossamer.train.checkpoint import write_atomically

METRICS = "metrics.jsonl"  # file name in the folder of a training
Row = dict[str, Any]


class MetricsFile:
    """Append rows to a metrics file; a context manager.

    Args:
        path: the file.
        keep_until: rows of later steps are dropped first: a resumed run makes them again. 0
            starts an empty file.

    Raises:
        CheckpointError: the file to continue is missing or damaged before that step.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, keep_until: int = 0) -> None:
        self.path = path
        rows = (
            [row for row in read_metrics(path) if row["step"] <= keep_until] if keep_until else []
        )
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        self._file: TextIO = path.open("a", encoding="utf-8", buffering=1)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row: `run, step, loss, val_loss, seconds, tokens_per_second, lr`.

        With a router also `expert_load` and, where `val_loss` is, `val_expert_load`: the
        share of the tokens that each expert got, a list for each block. With a penalty, where
        `val_loss` is, also `density, kept_groups, groups` of the penalised weights. With a
        recipe, where `val_loss` is, also `masks`: what `Diagnostics.measure` gives, its
        flips since the last evaluation.
        """
        self._file.write(json.dumps(row) + "\n")

    def sync(self) -> None:
        """Wait until the rows so far are on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def busiest(load: Sequence[Sequence[float]]) -> float:
    """How busy the busiest expert of a block is, on average over the blocks.

    Args:
        load: share of the tokens that each expert got, a list for each block.

    Returns:
        Its share over an even one: 1 when all are alike.

    Example:
        >>> busiest([[0.5, 0.25, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25]])
        1.5
    """
    return sum(max(shares) * len(shares) for shares in load) / len(load)


def read_metrics(path: str | Path) -> list[Row]:
    """Read a metrics file.

    Args:
        path: the file.

    Returns:
        Its rows. A last line without its end, as a killed process leaves, is passed over.

    Raises:
        CheckpointError: the file is missing, or another line is damaged.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"metrics {path} cannot be read ({error}); they belong beside the checkpoint"
        ) from error
