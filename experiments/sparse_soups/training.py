"""One run of prune and retrain on the digits: several copies a phase, averaged and pruned."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bench.harness.rows import Row
from bench.transport.cases import digit_images
from gossamer import timing
from gossamer.optim import AveragedModel, PruneRetrain

EXCLUDE = "6"
NOISE = 0.2  # standard deviation that is added to images from 0 to 1
SOUP, SINGLE, LONGER = "SMS", "one copy", "one copy, three times as long"
SWAMP, REWOUND, TWO = "SWAMP", "IMP", "two IMPs as an ensemble"


class How(NamedTuple):
    """What a method does: copies per phase, their length, whether they go back, and how many."""

    copies: int = 1
    length: int = 1
    rewind: bool = False
    models: int = 1


METHODS: dict[str, How] = {
    SOUP: How(copies=3),
    SINGLE: How(),
    LONGER: How(length=3),
    SWAMP: How(copies=4, rewind=True),
    REWOUND: How(rewind=True),
    TWO: How(rewind=True, models=2),
}


@dataclass(frozen=True)
class Plan:
    """What all runs share.

    Args:
        pattern: of the last phase.
        rounds: number of prunings.
        epochs: of a copy in a phase.
        early: epochs before the point to go back to.
        batch: images per step.
        width: of both hidden layers.
        lr: at the start of a phase; it falls to 0 by a cosine. Where steps are averaged it falls
            for three quarters of the phase, and stays at `steady` of this.
        steady: see `lr`.
        momentum: of SGD.
        weight_decay: of SGD.
    """

    pattern: str = "98%"
    rounds: int = 3
    epochs: int = 20
    early: int = 2
    batch: int = 50
    width: int = 256
    lr: float = 0.1
    steady: float = 0.3
    momentum: float = 0.9
    weight_decay: float = 1e-4


class Training(NamedTuple):
    """One run: its method, the percent of labels to learn from that are drawn anew, and seed."""

    method: str
    wrong: int
    seed: int

    @property
    def row(self) -> Row:
        """The columns that name this run."""
        return self._asdict()


class Seen(NamedTuple):
    """How models do together: right answers, those on images with noise, and the loss in nats."""

    right: float
    noisy: float
    loss: float


def measure(plan: Plan, training: Training) -> Row:
    """Run all phases on one thread.

    Args:
        plan: what all runs share.
        training: this one.

    Returns:
        The run, `result`: what the average of each sparse phase reaches on the images to judge by
        as [right, noisy, loss], and `copies`: the same of each copy.
    """
    how = METHODS[training.method]
    with timing.threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # neurons that lose all their inputs
        (x, labels), (tx, ty) = split()
        random = torch.Generator().manual_seed(training.seed)
        wrong = torch.rand(len(labels), generator=random) < training.wrong / 100
        y = torch.where(wrong, torch.randint(10, labels.shape, generator=random), labels)
        noisy = tx + NOISE * torch.randn(tx.shape, generator=torch.Generator().manual_seed(0))
        runs = [list(_phases(plan, how, training.seed + 100 * i, x, y)) for i in range(how.models)]

    def seen(models: list[nn.Module]) -> Seen:
        clear, dim = answers(models, tx), answers(models, noisy)
        return Seen(share(clear, ty), share(dim, ty), float(nn.functional.nll_loss(clear, ty)))

    parts = range(1, plan.rounds + 1)
    return training.row | {
        "result": [seen([run[phase][0] for run in runs]) for phase in parts],
        "copies": [[seen([one]) for one in runs[0][phase][1]] for phase in parts],
    }


def _phases(
    plan: Plan, how: How, seed: int, x: Tensor, y: Tensor
) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """Yield the average and the copies of each phase; the first is dense."""
    model = network(plan, seed)
    if how.rewind:
        learn(plan, model, seed, plan.early, x, y, falling=False)
    images = [x[at : at + plan.batch] for at in range(0, len(x), plan.batch)]
    phases = PruneRetrain(model, plan.pattern, plan.rounds, how.rewind, exclude=EXCLUDE)
    while not phases.is_over:
        # Soups begin with one dense model; particles are several from the start.
        count = how.copies if how.rewind or phases.phase else 1
        trained = [
            learn(
                plan, one, 1000 * (1 + phases.phase) + 10_000 * (1 + number) + seed,
                plan.epochs * how.length, x, y, average=how.rewind and how.copies > 1,
            )
            for number, one in enumerate(phases.copies(count))
        ]  # fmt: skip
        for one in trained:
            update_bn(images, one)
        yield phases.close(trained, lambda mean: update_bn(images, mean)), trained


def learn(
    plan: Plan,
    model: nn.Module,
    seed: int,
    epochs: int,
    x: Tensor,
    y: Tensor,
    *,
    falling: bool = True,
    average: bool = False,
) -> nn.Module:
    """Train a model; return it, or the average over the last quarter of its steps."""
    optimizer = torch.optim.SGD(
        model.parameters(), plan.lr, plan.momentum, weight_decay=plan.weight_decay
    )
    steps = epochs * -(-len(x) // plan.batch)
    until = steps - steps // 4 if average else steps
    end = plan.steady if average else 0.0
    mean, random = AveragedModel(model), torch.Generator().manual_seed(seed)
    at = 0
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=random).split(plan.batch):  # type: ignore[no-untyped-call]
            wave = (1 + torch.cos(torch.tensor(torch.pi * min(at / until, 1.0)))) / 2
            optimizer.param_groups[0]["lr"] = plan.lr * (
                end + (1 - end) * float(wave) if falling else 1.0
            )
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            at += 1
            if average and at > until:
                mean.update_parameters(model)
    return mean.module if average else model


def network(plan: Plan, seed: int) -> nn.Module:
    """Return the network: two hidden layers with batch normalisation."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((64, plan.width, plan.width)):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(plan.width, 10))


def split() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return images [n, 64] from 0 to 1 and labels: 800 to learn from, 997 to judge by."""
    images, labels = digit_images()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = torch.from_numpy(images / 16).float().flatten(1)[order], torch.from_numpy(labels)[order]
    return (x[:800], y[:800]), (x[800:], y[800:])


@torch.no_grad()
def answers(models: list[nn.Module], x: Tensor) -> Tensor:
    """Return the log of the mean probability over models, [n, 10]."""
    each = torch.stack([model.eval()(x).log_softmax(1) for model in models])
    return each.logsumexp(0) - torch.tensor(len(models)).log()


def share(found: Tensor, y: Tensor) -> float:
    """Return the share of right answers."""
    return float((found.argmax(1) == y).double().mean())
