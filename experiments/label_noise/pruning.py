"""Sharpness-aware training before whole rows are removed: digits, seen clearly and through noise.

Each method trains a dense network once; whole hidden neurons are then removed, without training.
Its radius is chosen on other images, by the mean over seeds at the smallest size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

import gossamer
from bench.harness.rows import Row, Work, carry_out, check_counts, header_of, made_on
from bench.harness.tables import Cell, Grid, Page
from bench.harness.words import spread
from experiments.label_noise import training as digits
from experiments.label_noise.training import BASE, Plan
from gossamer import timing
from gossamer.optim.sharpness import SAM, AdaSAP

SCHEMA = 1
NAME = "sharp-pruning"
KEEPS = (0.5, 0.25, 0.1, 0.05)
NOISE = 0.2  # standard deviation that is added to images from 0 to 1
RADII: Mapping[str, Sequence[float]] = {
    BASE: (0.0,), "SAM": (0.05, 0.1, 0.2), "AdaSAP": (0.2, 0.5, 1.0),
}  # fmt: skip
PLAN = Plan(epochs=30, noise=0.0)


class Training(NamedTuple):
    """One training: method, radius (AdaSAP: of the least important row) and seed."""

    method: str
    rho: float
    seed: int

    @property
    def row(self) -> Row:
        """The columns that name this training."""
        return self._asdict()


def measure(plan: Plan, training: Training) -> Row:
    """Train once on one thread, and remove rows.

    Args:
        plan: what all trainings share.
        training: this one.

    Returns:
        The training, and lists of the share of right answers before anything is removed and at
        each of KEEPS: `choice` on images to choose by, `test` and `noisy` on those to judge by.
    """
    (x, y), choice, (tx, ty) = digits.split()
    model = digits.network(plan, digits.Training(0, training.method, training.rho, training.seed))
    optimizer = torch.optim.SGD(
        model.parameters(), plan.lr, plan.momentum, weight_decay=plan.weight_decay
    )
    steps = plan.epochs * -(-len(x) // plan.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    if training.method != BASE:
        method = SAM(training.rho) if training.method == "SAM" else AdaSAP(0.01, training.rho)
        method.attach(model, optimizer)
    random = torch.Generator().manual_seed(training.seed)
    for _ in range(plan.epochs):
        for chosen in torch.randperm(len(x), generator=random).split(plan.batch):  # type: ignore[no-untyped-call]
            digits.step(model, optimizer, x[chosen], y[chosen], training.method == BASE)
            schedule.step()
    model.eval()
    models = [model, *(_smaller(model, x, keep) for keep in KEEPS)]
    noisy = tx + NOISE * torch.randn(tx.shape, generator=torch.Generator().manual_seed(0))
    seen = {"choice": choice, "test": (tx, ty), "noisy": (noisy, ty)}
    return training.row | {who: [digits.share(m, *of) for m in models] for who, of in seen.items()}


def _smaller(model: nn.Module, x: Tensor, keep: float) -> nn.Module:
    return gossamer.prune(model, x[:2], keep=keep)


def study(
    out: Path,
    plan: Plan = PLAN,
    *,
    radii: Mapping[str, Sequence[float]] = RADII,
    seeds: int = 5,
    jobs: int = 1,
    overwrite: bool = False,
    console: Console | None = None,
) -> int:
    """Train everything that is missing; write the rows and the table.

    Args:
        out: folder of the results; what it holds of the same plan is kept.
        plan: what all trainings share.
        radii: that are tried, by method.
        seeds: trainings of each, from seed 0.
        jobs: trainings at the same time, each on one thread.
        overwrite: drop what the folder holds.
        console: where to print; standard output by default.

    Returns:
        0; 130 if interrupted, with all that was trained so far written.

    Raises:
        CheckpointError: the folder holds rows of other options.
        ArgumentError: a number of seeds or jobs below 1.
    """
    console = console or Console()
    check_counts(NAME, seeds=seeds, jobs=jobs)
    path, header = out / f"{NAME}.jsonl", header_of(SCHEMA, asdict(plan))
    grid = [
        Training(method, rho, seed)
        for method, tried in radii.items()
        for rho in tried
        for seed in range(seeds)
    ]
    with timing.threads(1):
        return carry_out(
            path,
            header,
            [Work(partial(measure, plan), grid, jobs)],
            _key,
            _words,
            page,
            overwrite=overwrite,
            console=console,
        )


def page(rows: Sequence[Row], header: Row) -> Page:
    """Lay out the rows: each method with the radius that is best on the images to choose by."""
    plan = header["plan"]
    lines = [
        made_on(header, "one thread per training"),
        f"digits of scikit-learn, 1000 images to learn from; two hidden layers of {plan['width']}, "
        f"SGD with momentum, {plan['epochs']} epochs; then `gossamer.prune` removes hidden neurons "
        "until a share of the operations is left, and nothing is trained after",
        "accuracy on 500 images in percent, mean ± standard deviation over seeds; the radius is "
        f"the best of those tried on 297 other images at the smallest size; noise: of {NOISE:g} is "
        "added to images from 0 to 1",
    ]
    sizes = ["all", *(f"{keep:.0%}" for keep in KEEPS)]
    grids = []
    for title, of in (("Clear images", "test"), ("Images with noise", "noisy")):
        table = []
        for method in dict.fromkeys(row["method"] for row in rows):
            best, own = chosen(rows, method)
            cells = [spread([row[of][at] for row in own], percent=True) for at in range(len(sizes))]
            radius = "–" if method == BASE else f"{best:g}"
            table.append([Cell(text) for text in (method, radius, *cells)])
        grids.append(Grid(title, ["method", "radius", *sizes], table))
    return Page(grids, lines, f"{len(rows)} trainings")


def chosen(rows: Sequence[Row], method: str) -> tuple[float, list[Row]]:
    """Return the radius of a method that is best on the images to choose by, and its rows."""
    by_rho: dict[float, list[Row]] = {}
    for row in rows:
        if row["method"] == method:
            by_rho.setdefault(row["rho"], []).append(row)
    best = max(by_rho, key=lambda rho: fmean(row["choice"][-1] for row in by_rho[rho]))
    return best, by_rho[best]


def _key(row: Row) -> tuple[str, float, int]:
    return row["method"], row["rho"], row["seed"]


def _words(row: Row) -> str:
    return f"{row['method']} {row['rho']:g} seed {row['seed']}: {row['test'][-1]:.1%}"
