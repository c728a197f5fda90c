"""metrics.jsonl: one JSON object per step and run, appended during training."""

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
        keep_until: number of steps whose rows are kept; a resumed run writes later ones again. 0
            starts an empty file.

    Raises:
        CheckpointError: the file to continue is missing, or damaged up to that step.
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

        A router adds `expert_load`, the share of tokens per expert, one list per block. A row with
        `val_loss` also has `val_expert_load` with a router; `density, kept_groups, groups` of the
        penalised weights with a penalty; and with a recipe `masks`, the result of
        `Diagnostics.measure` with flips since the last evaluation.
        """
        self._file.write(json.dumps(row) + "\n")

    def sync(self) -> None:
        """Wait until all rows are on the disk."""
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


def read_metrics(path: str | Path) -> list[Row]:
    """Read a metrics file.

    Args:
        path: the file.

    Returns:
        The rows. An incomplete last line, as left by a killed process, is skipped.

    Raises:
        CheckpointError: the file is missing, or another line is damaged.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"metrics {path} cannot be read ({error}); the file must be beside the checkpoint"
        ) from error
