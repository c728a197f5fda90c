"""Which exponent of the density a learning rate should follow: random masks over densities.

Each network is trained at several peak rates with several exponents, from the same dense weights
on the same batches. If an exponent is right, the best peak rate is the same at every density.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from bench.harness.rows import Row, Work, check_counts, collect, header_of, present
from experiments.learning_rate.page import page, plot
from experiments.learning_rate.training import FIELDS, PLAN, Training, corpus_of, measure
from gossamer.train import TrainConfig

SCHEMA = 1
NAME = "learning-rate"
SPARSITIES = (90, 75, 50, 95, 98)
LRS = (1.5e-3, 3e-3, 6e-3)
EXPONENTS = (0.0, 0.5, 1.0)
# Initial variances of other exponents than 1, told apart at one density, at rates of exponent 1.
INIT_SPARSITY, INITS = 90, (0.0, 0.5)


def study(
    out: Path,
    plan: TrainConfig = PLAN,
    *,
    sparsities: Sequence[int] = SPARSITIES,
    lrs: Sequence[float] = LRS,
    exponents: Sequence[float] = EXPONENTS,
    seeds: int = 2,
    jobs: int = 1,
    overwrite: bool = False,
    console: Console | None = None,
) -> int:
    """Train everything that is missing; write the rows, the table and the picture.

    Args:
        out: folder of the results; what it holds of the same plan is kept.
        plan: what is trained.
        sparsities: of the random masks, in percent.
        lrs: peak learning rates.
        exponents: of the density in the rate of sparse layers.
        seeds: trainings of each, from seed 0.
        jobs: trainings at the same time, each on one thread.
        overwrite: drop what the folder holds.
        console: where to print; standard output by default.

    Returns:
        0; 130 if interrupted, with all that was trained so far written.

    Raises:
        CheckpointError: the folder holds rows of other options, another text or version.
        ArgumentError: an option is out of range.
    """
    console = console or Console()
    check_counts(NAME, seeds=seeds, jobs=jobs)
    path = out / f"{NAME}.jsonl"
    grid = trainings(sparsities, lrs, exponents, range(seeds))
    fields = {name: getattr(plan, name) for name in FIELDS}
    header = header_of(SCHEMA, fields, text=corpus_of(plan).fingerprint)
    work = Work(partial(measure, plan), grid, jobs)
    rows, stopped = collect(
        path, header, [work], _key, _words, overwrite=overwrite, console=console
    )
    return present(path, page(rows, header), partial(plot, rows), stopped, console)


def trainings(
    sparsities: Iterable[int],
    lrs: Iterable[float],
    exponents: Iterable[float],
    seeds: Iterable[int],
) -> list[Training]:
    """Everything that is trained, seed by seed, so that a part of it is a table too.

    Example:
        >>> [(one.sparsity, one.exponent) for one in trainings([50], [1e-3], [0.0, 1.0], [0])]
        [(0, 0.0), (50, 0.0), (50, 1.0)]
    """
    sparsities, lrs, exponents = list(sparsities), list(lrs), list(exponents)
    found: list[Training] = []
    inits = INITS if INIT_SPARSITY in sparsities else ()
    for seed in seeds:
        found += [Training(0, lr, 0.0, 1.0, seed) for lr in lrs]
        for sparsity in sparsities:
            found += [
                Training(sparsity, lr, exponent, 1.0, seed) for exponent in exponents for lr in lrs
            ]
        found += [Training(INIT_SPARSITY, lr, 1.0, init, seed) for init in inits for lr in lrs]
    return found


def _key(row: Row) -> tuple[int, float, float, float, int]:
    return row["sparsity"], row["lr"], row["exponent"], row["init"], row["seed"]


def _words(row: Row) -> str:
    who = f"{row['sparsity']} % lr {row['lr']:g} exponent {row['exponent']:g} seed {row['seed']}"
    return f"{who}: {row.get('val_loss', 'diverged')}"
