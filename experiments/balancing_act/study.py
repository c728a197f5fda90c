"""Constraints on what pruning costs each class: fine-tuning with and without them, digits.

A class's gap is what it loses of its dense accuracy beyond what all images lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean, median

import torch
from rich.console import Console
from torch import nn

import gossamer
from bench.harness.rows import Row, Work, carry_out, check_counts, header_of, made_on
from bench.harness.tables import Cell, Grid, Page
from bench.harness.words import spread
from experiments.balancing_act.training import (
    CONSTRAINED,
    METHODS,
    PLAIN,
    Plan,
    Training,
    measure,
)
from gossamer import timing
from gossamer.recipes import DisparateImpact, GroupAccuracy

SCHEMA = 1
NAME = "balancing-act"
GROUPS = 100  # of the training whose time is measured
TIME = Training("time", -1)


def study(
    out: Path,
    plan: Plan | None = None,
    *,
    seeds: int = 5,
    jobs: int = 1,
    times: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> int:
    """Train everything that is missing; write the rows and the table.

    Args:
        out: folder of the results; what it holds of the same plan is kept.
        plan: what all trainings share.
        seeds: trainings of each, from seed 0.
        jobs: trainings at the same time, each on one thread.
        times: also measure the time of a step; nothing else should run.
        overwrite: drop what the folder holds.
        console: where to print; standard output by default.

    Returns:
        0; 130 if interrupted, with all that was trained so far written.

    Raises:
        CheckpointError: the folder holds rows of other options.
        ArgumentError: a number of seeds or jobs below 1.
    """
    plan, console = plan or Plan(), console or Console()
    check_counts(NAME, seeds=seeds, jobs=jobs)
    path, header = out / f"{NAME}.jsonl", header_of(SCHEMA, asdict(plan))
    grid = [Training(method, seed) for seed in range(seeds) for method in METHODS]
    works = [Work(partial(measure, plan), grid, jobs)]
    if times:
        works.append(Work(time_step, [TIME]))
    with timing.threads(1):
        return carry_out(
            path,
            header,
            works,
            _key,
            _words,
            page,
            overwrite=overwrite,
            console=console,
        )


def time_step(training: Training, width: int = 1024, rounds: int = 41) -> Row:
    """Time steps of a training with and without constraints on many groups, in turn.

    Args:
        training: only names the row.
        width: of two sparse layers, on batches of 512.
        rounds: measured steps of each.

    Returns:
        Medians in seconds: `plain` and `constrained`.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, GROUPS),
    )  # fmt: skip
    gossamer.sparsify(model, "90%", exclude="4")
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    x, y = torch.randn(512, width), torch.randint(GROUPS, (512,))
    known = GroupAccuracy(torch.ones(GROUPS), torch.full((GROUPS,), 500))
    fair = DisparateImpact(known, rate=1e-3)

    def step(constrained: bool) -> None:
        optimizer.zero_grad()
        logits = model(x)
        loss = fair(logits, y, y) if constrained else nn.functional.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()

    calls = {"plain": partial(step, False), "constrained": partial(step, True)}
    found = timing.interleaved(calls, rounds)
    return training.row | {name: median(one.samples) for name, one in found.items()}


def page(rows: Sequence[Row], header: Row) -> Page:
    """Lay out the rows: accuracies and the largest gap of a class."""
    plan = header["plan"]
    lines = [
        made_on(header, "one thread per training"),
        f"digits of scikit-learn, 1000 images to learn from, 797 to judge by, ten classes as "
        f"groups; two hidden layers of {plan['width']}, trained densely, then pruned gradually to "
        f"{plan['pattern']} in {plan['pruning_share']:.0%} of {plan['epochs']} epochs and "
        "fine-tuned in the others",
        f"constraints: tolerance {plan['tolerance']:g}, rate {plan['rate']:g}, memory "
        f"{plan['memory']} answers per class; gap: what the worst class loses of its dense "
        "accuracy beyond what all images lose, in points; mean ± standard deviation over seeds",
    ]
    table = []
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        if own:
            cells = [Cell(method)]
            for part in ("train", "test"):
                cells += [Cell(spread([overall(row[part]["dense"]) for row in own], percent=True))]
                cells += [Cell(spread([overall(row[part]["sparse"]) for row in own], percent=True))]
                cells += [Cell(spread([largest_gap(row[part]) for row in own], percent=True))]
            table.append([*cells, Cell(str(len(own)))])
    headings = [
        "fine-tuned by", "train: dense", "sparse", "largest gap", "test: dense", "sparse",
        "largest gap", "seeds",
    ]  # fmt: skip
    return Page([Grid("Accuracy (%)", headings, table)], lines, "\n".join(verdict(rows)))


def verdict(rows: Sequence[Row]) -> list[str]:
    """Say what became of the gap and of the accuracy, and of the time of a step."""
    by = {who: [row for row in rows if row["method"] == who] for who in (*METHODS, TIME.method)}
    said = [f"{len(by[PLAIN]) + len(by[CONSTRAINED])} trainings"]
    if by[PLAIN] and by[CONSTRAINED]:
        for part in ("train", "test"):
            gaps = [fmean(largest_gap(row[part]) for row in by[who]) for who in METHODS]
            means = [fmean(overall(row[part]["sparse"]) for row in by[who]) for who in METHODS]
            met = gaps[1] <= gaps[0] / 2 and means[0] - means[1] <= 0.01
            said.append(
                f"{part} images: the largest gap goes from {100 * gaps[0]:.1f} to "
                f"{100 * gaps[1]:.1f} points, the accuracy from {100 * means[0]:.1f} to "
                f"{100 * means[1]:.1f} %; the bar (half the gap, at most one point of accuracy) is "
                f"{'met' if met else 'missed'}"
            )
    said += [
        f"a step with {GROUPS} groups (two sparse layers of 1024 at 90 %, batches of 512, in turn) "
        f"takes {row['constrained'] / row['plain']:.3f} of {1e3 * row['plain']:.1f} ms"
        for row in by[TIME.method]
    ]
    return said


def overall(seen: Row) -> float:
    """Return the accuracy of all images."""
    pairs = list(zip(seen["classes"], seen["counts"], strict=True))
    right = sum(share * count for share, count in pairs)
    return float(right / sum(count for _, count in pairs))


def largest_gap(part: Row) -> float:
    """Return what the worst class loses beyond what all images lose."""
    mean = overall(part["dense"]) - overall(part["sparse"])
    pairs = zip(part["dense"]["classes"], part["sparse"]["classes"], strict=True)
    return float(max(dense - sparse for dense, sparse in pairs)) - mean


def _key(row: Row) -> tuple[str, int]:
    return row["method"], row["seed"]


def _words(row: Row) -> str:
    if row["method"] == TIME.method:
        return f"time of a step: {row['constrained'] / row['plain']:.3f}"
    gaps = ", ".join(f"{part} {largest_gap(row[part]):.1%}" for part in ("train", "test"))
    return f"{row['method']} seed {row['seed']}: largest gap {gaps}"
