"""One training on the digits: dense, pruned gradually, fine-tuned with constraints or without."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.harness.rows import Row
from bench.transport.cases import digit_images
from gossamer import timing
from gossamer.recipes import GMP, DisparateImpact, group_accuracy

PLAIN, CONSTRAINED = "cross-entropy", "with constraints"
METHODS = (PLAIN, CONSTRAINED)
CLASSES = 10


@dataclass(frozen=True)
class Plan:
    """What all trainings share.

    Args:
        pattern: of the hidden layers in the end.
        width: of both hidden layers.
        dense_epochs: of the dense model.
        epochs: of pruning and fine-tuning together.
        pruning_share: share of these epochs in which the recipe prunes.
        batch: images per step.
        lr: at the start of both parts; it falls to 0 by a cosine.
        momentum: of SGD.
        weight_decay: of SGD.
        tolerance: of the constraints.
        rate: of the multipliers.
        memory: answers per group.
    """

    pattern: str = "95%"
    width: int = 16
    dense_epochs: int = 40
    epochs: int = 60
    pruning_share: float = 0.25
    batch: int = 50
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    tolerance: float = 0.01
    rate: float = 0.01
    memory: int = 40


class Training(NamedTuple):
    """One training: its method and seed."""

    method: str
    seed: int

    @property
    def row(self) -> Row:
        """The columns that name this training."""
        return self._asdict()


def measure(plan: Plan, training: Training) -> Row:
    """Train a dense model, prune it and fine-tune it, on one thread.

    Args:
        plan: what all trainings share.
        training: this one.

    Returns:
        The training, and for `train` and `test` images lists by class of the accuracy of the
        `dense` and the `sparse` model; `multipliers` at the end.
    """
    with timing.threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # neurons that lose all their inputs
        parts = split()
        (x, y), _ = parts
        torch.manual_seed(training.seed)
        dense = nn.Sequential(
            nn.Linear(64, plan.width), nn.ReLU(), nn.Linear(plan.width, plan.width), nn.ReLU(),
            nn.Linear(plan.width, CLASSES),
        )  # fmt: skip
        learn(plan, dense, None, x, y, plan.dense_epochs, training.seed)
        before = [_accuracy(dense, *part) for part in parts]
        recipe = GMP(plan.pattern, end_share=plan.pruning_share)
        model = recipe.prepare(copy.deepcopy(dense), exclude="4")
        fair = None
        if training.method == CONSTRAINED:
            known = group_accuracy(dense, [(x, y, y)], CLASSES)
            fair = DisparateImpact(known, plan.tolerance, plan.rate, plan.memory, recipe)
        learn(plan, model, fair, x, y, plan.epochs, 1000 + training.seed, recipe)
        recipe.finish(model)
        after = [_accuracy(model, *part) for part in parts]
    return training.row | {
        "train": {"dense": before[0], "sparse": after[0]},
        "test": {"dense": before[1], "sparse": after[1]},
        "multipliers": [] if fair is None else fair.multipliers.tolist(),
    }


def learn(
    plan: Plan,
    model: nn.Module,
    fair: DisparateImpact | None,
    x: Tensor,
    y: Tensor,
    epochs: int,
    seed: int,
    recipe: GMP | None = None,
) -> None:
    """Train a model, with a recipe and constraints if there are any."""
    optimizer = torch.optim.SGD(
        model.parameters(), plan.lr, plan.momentum, weight_decay=plan.weight_decay
    )
    steps = epochs * -(-len(x) // plan.batch)
    if recipe is not None:
        recipe.attach(model, optimizer, steps)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    random = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=random).split(plan.batch):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            logits, labels = model(x[chosen]), y[chosen]
            if fair is None:
                loss = nn.functional.cross_entropy(logits, labels)
            else:
                loss = fair(logits, labels, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def split() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return images [n, 64] from 0 to 1 and labels: 1000 to learn from, 797 to judge by."""
    images, labels = digit_images()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = torch.from_numpy(images / 16).float().flatten(1)[order], torch.from_numpy(labels)[order]
    return (x[:1000], y[:1000]), (x[1000:], y[1000:])


def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, list[float]]:
    found = group_accuracy(model, [(x, y, y)], CLASSES)
    return {"classes": found.groups.tolist(), "counts": found.counts.tolist()}
