"""One training on the digits with wrong labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

import gossamer
from bench.harness.rows import Row
from bench.transport.cases import digit_images
from gossamer.optim.sharpness import ASAM, MSAM, SAM

BASE = "SGD"


class Method(Protocol):
    """A sharpness method."""

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Follow the optimizer."""


METHODS: dict[str, Callable[[float], Method]] = {"SAM": SAM, "ASAM": ASAM, "MSAM": MSAM}
ONE_PASS = {BASE, "MSAM"}


@dataclass(frozen=True)
class Plan:
    """What all trainings share.

    Args:
        epochs: over the images.
        batch: images per step.
        width: of both hidden layers.
        lr: at the start; it falls to 0 by a cosine.
        momentum: of SGD.
        weight_decay: of SGD.
        noise: share of the labels to learn from that are drawn anew, uniformly.
    """

    epochs: int = 60
    batch: int = 50
    width: int = 256
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    noise: float = 0.2


class Training(NamedTuple):
    """One training: sparsity in percent, method, radius and seed."""

    sparsity: int
    method: str
    rho: float
    seed: int

    @property
    def row(self) -> Row:
        """The columns that name this training."""
        return self._asdict()


def measure(plan: Plan, training: Training) -> Row:
    """Train once on one thread.

    Args:
        plan: what all trainings share.
        training: this one.

    Returns:
        The training, and `choice` and `test`: the share of right answers on the images to choose
        by and to judge by, whose labels are right.
    """
    (x, labels), *others = split()
    random = torch.Generator().manual_seed(training.seed)
    wrong = torch.rand(len(labels), generator=random) < plan.noise
    y = torch.where(wrong, torch.randint(10, labels.shape, generator=random), labels)
    model = network(plan, training)
    optimizer = torch.optim.SGD(
        model.parameters(), plan.lr, plan.momentum, weight_decay=plan.weight_decay
    )
    steps = plan.epochs * -(-len(x) // plan.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    if training.method != BASE:
        METHODS[training.method](training.rho).attach(model, optimizer)
    for _ in range(plan.epochs):
        order = torch.randperm(len(x), generator=random)
        for at in range(0, len(x), plan.batch):
            chosen = order[at : at + plan.batch]
            step(model, optimizer, x[chosen], y[chosen], training.method in ONE_PASS)
            schedule.step()
    model.eval()
    return {
        **training.row, "choice": share(model, *others[0]), "test": share(model, *others[1]),
    }  # fmt: skip


def split() -> list[tuple[Tensor, Tensor]]:
    """Return images [n, 64] from 0 to 1 and labels: 1000 to learn from, 297 to choose by, 500."""
    images, labels = digit_images()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = torch.from_numpy(images / 16).float().flatten(1)[order], torch.from_numpy(labels)[order]
    return [(x[a:b], y[a:b]) for a, b in ((0, 1000), (1000, 1297), (1297, 1797))]


def network(plan: Plan, training: Training) -> nn.Module:
    """Return the network: two hidden layers, whose weights are sparse at random from the start."""
    torch.manual_seed(training.seed)
    width = plan.width
    model = nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )  # fmt: skip
    if training.sparsity:
        gossamer.sparsify(model, f"{training.sparsity}%", exclude="4", score="random")
    return model


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, one_pass: bool
) -> None:
    """Take one step; a method of several passes gets the closure."""

    def closure() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    if one_pass:
        closure()
        optimizer.step()
    else:
        optimizer.step(closure)


@torch.no_grad()
def share(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of right answers."""
    right = model(x).argmax(1) == y
    return float(right.double().mean())
