"""What rows grouped by similarity keep: N:M over V = 1 to 64 rows, with and without."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from bench.harness.rows import Row, Work, check_counts, collect, header_of, present
from experiments.row_groups.page import page, plot
from experiments.row_groups.training import Plan, Pruning, corpus_of, measure

SCHEMA = 1
NAME = "row-groups"
PATTERNS = ("2:4", "1:4")
VECTORS = (1, 8, 16, 32, 64)


def study(
    out: Path,
    plan: Plan = Plan(),  # noqa: B008 - a value
    *,
    patterns: Sequence[str] = PATTERNS,
    vectors: Sequence[int] = VECTORS,
    seeds: int = 2,
    jobs: int = 1,
    overwrite: bool = False,
    console: Console | None = None,
) -> int:
    """Prune everything that is missing; write the rows, the table and the picture.

    Args:
        out: folder of the results; what it holds of the same plan is kept.
        plan: what is trained.
        patterns: N:M, without vectors.
        vectors: rows that share their columns.
        seeds: dense models, from seed 0.
        jobs: prunings at the same time, each on one thread.
        overwrite: drop what the folder holds.
        console: where to print; standard output by default.

    Returns:
        0; 130 if interrupted, with all that was done so far written.

    Raises:
        CheckpointError: the folder holds rows of other options, another text or version.
        ArgumentError: an option is out of range.
    """
    console = console or Console()
    check_counts(NAME, seeds=seeds, jobs=jobs)
    path = out / f"{NAME}.jsonl"
    header = header_of(SCHEMA, plan.row, text=corpus_of(plan).fingerprint)
    work = Work(partial(measure, plan), prunings(patterns, vectors, range(seeds)), jobs)
    rows, stopped = collect(
        path, header, [work], _key, _words, overwrite=overwrite, console=console
    )
    return present(path, page(rows, header), partial(plot, rows), stopped, console)


def prunings(
    patterns: Iterable[str], vectors: Iterable[int], seeds: Iterable[int]
) -> list[Pruning]:
    """Everything that is pruned, seed by seed.

    Example:
        >>> [(one.vector, one.grouped) for one in prunings(["2:4"], [1, 8], [0])]
        [(1, False), (8, False), (8, True)]
    """
    vectors, patterns = list(vectors), list(patterns)
    return [
        Pruning(pattern, vector, grouped, seed)
        for seed in seeds
        for pattern in patterns
        for vector in vectors
        for grouped in ((False, True) if vector > 1 else (False,))
    ]


def _key(row: Row) -> tuple[str, int, bool, int]:
    return row["pattern"], row["vector"], row["grouped"], row["seed"]


def _words(row: Row) -> str:
    who = f"{row['pattern']}:v{row['vector']} {'grouped' if row['grouped'] else 'as it is'}"
    if "error" in row:
        return f"{who} seed {row['seed']}: {row['error']}"
    return f"{who} seed {row['seed']}: kept {row['kept']:.4f}, loss {row['val_loss']:.4f}"
