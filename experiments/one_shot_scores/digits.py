"""Scores for cuts before training: a LeNet on the digits, by SynFlow and its rivals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

import gossamer
from bench.harness.rows import Row, Work, carry_out, check_counts, header_of, made_on
from bench.harness.tables import Cell, Grid, Page
from bench.harness.words import spread
from bench.transport.cases import digit_images
from gossamer import timing
from gossamer.pruning import drawn, global_shares, random_scores, snip, synflow

SCHEMA = 1
NAME = "synflow-digits"
SPARSITIES = (95, 98)


@dataclass(frozen=True)
class Plan:
    """What all trainings share.

    Args:
        epochs: over the images.
        batch: images per step.
        lr: at the start; it falls to 0 by a cosine.
        momentum: of SGD.
        rounds: of SynFlow.
    """

    epochs: int = 20
    batch: int = 50
    lr: float = 0.1
    momentum: float = 0.9
    rounds: int = 100


class Training(NamedTuple):
    """One training: score, sparsity in percent, and seed."""

    score: str
    sparsity: int
    seed: int

    @property
    def row(self) -> Row:
        """The columns that name this training."""
        return self._asdict()


Scores = Mapping[str, Tensor]
Make = Callable[[nn.Module, Tensor, Tensor, Training, Plan], Scores]


def _synflow(model: nn.Module, x: Tensor, training: Training, plan: Plan, random: bool) -> Scores:
    generator = torch.Generator().manual_seed(training.seed)
    choose = partial(drawn, generator=generator) if random else None
    return synflow(model, x[:1], training.sparsity / 100, plan.rounds, choose)


def _weights(model: nn.Module) -> Scores:
    layers = dict(model.named_modules())
    return {
        name: layer.weight.detach().abs()
        for name, layer in layers.items()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


SCORES: dict[str, Make] = {
    "SynFlow, largest": lambda m, x, y, one, plan: _synflow(m, x, one, plan, False),
    "SynFlow, drawn": lambda m, x, y, one, plan: _synflow(m, x, one, plan, True),
    "SNIP, largest": lambda m, x, y, one, plan: snip(
        m, lambda model: nn.functional.cross_entropy(model(x), y)
    ),
    "magnitude, largest": lambda m, x, y, one, plan: _weights(m),
    "random": lambda m, x, y, one, plan: {
        name: random_scores(one.seed)(name, w) for name, w in _weights(m).items()
    },
}


def network(seed: int) -> nn.Sequential:
    """Return a LeNet for images of 8 x 8, untrained."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(128, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    for layer in model:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return model


def measure(plan: Plan, training: Training) -> Row:
    """Cut an untrained network, and train it.

    Args:
        plan: what all trainings share.
        training: this one.

    Returns:
        The training, the share of right answers on other images, and the smallest density of a
        layer.
    """
    images, labels = digit_images()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = torch.from_numpy(images / 16).float()[order], torch.from_numpy(labels)[order]
    x, tx, y, ty = x[:1297], x[1297:], y[:1297], y[1297:]
    with timing.threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # rows without any entry
        model = network(training.seed)
        scores = SCORES[training.score](model, x, y, training, plan)
        share = training.sparsity / 100
        overrides = global_shares(scores, share)
        gossamer.sparsify(model, f"{training.sparsity}%", score=scores, overrides=overrides)
        _train(plan, model, x, y, training.seed)
        with torch.no_grad():
            right = (model(tx).argmax(1) == ty).double().mean().item()
    return training.row | {
        "accuracy": right, "least": min(pattern.density for pattern in overrides.values()),
    }  # fmt: skip


def _train(plan: Plan, model: nn.Module, x: Tensor, y: Tensor, seed: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), plan.lr, plan.momentum)
    steps = plan.epochs * -(-len(x) // plan.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    random = torch.Generator().manual_seed(seed)
    for _ in range(plan.epochs):
        for chosen in torch.randperm(len(x), generator=random).split(plan.batch):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def study(
    out: Path,
    plan: Plan = Plan(),
    *,
    sparsities: Sequence[int] = SPARSITIES,
    seeds: int = 5,
    jobs: int = 1,
    overwrite: bool = False,
    console: Console | None = None,
) -> int:
    """Train everything that is missing; write the rows and the table.

    Args:
        out: folder of the results; what it holds of the same plan is kept.
        plan: what all trainings share.
        sparsities: in percent.
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
        Training(s, sparsity, i) for i in range(seeds) for sparsity in sparsities for s in SCORES
    ]
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
    """Lay out the rows: a line per score, a column per sparsity."""
    plan = header["plan"]
    lines = [
        made_on(header, "one thread per training"),
        "digits of scikit-learn, 1297 images to learn from; LeNet with two convolutions and three "
        "linear layers, from normal numbers of variance 2 / inputs, cut before training, all "
        f"layers ranked together; SGD with momentum, {plan['epochs']} epochs; SynFlow in "
        f"{plan['rounds']} rounds",
        "accuracy on 500 images in percent, mean ± standard deviation over seeds; drawn: at random "
        "with the scores as odds, in each round",
    ]
    sparsities = sorted({row["sparsity"] for row in rows})
    table = []
    for score in dict.fromkeys(row["score"] for row in rows):
        own = [
            [r["accuracy"] for r in rows if (r["score"], r["sparsity"]) == (score, sparsity)]
            for sparsity in sparsities
        ]
        table.append([Cell(score), *(Cell(spread(values, percent=True)) for values in own)])
    headings = ["score", *(f"{sparsity} %" for sparsity in sparsities)]
    return Page([Grid("Accuracy", headings, table)], lines, f"{len(rows)} trainings")


def _key(row: Row) -> tuple[str, int, int]:
    return row["score"], row["sparsity"], row["seed"]


def _words(row: Row) -> str:
    return f"{row['score']} {row['sparsity']} % seed {row['seed']}: {row['accuracy']:.1%}"
