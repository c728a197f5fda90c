"""One training of the digits experiment: penalised, cut to the budget, then fine-tuned.

Every method gets the same number of epochs, the same split of the images and the same budget: how
many neurons or filters each hidden layer may keep.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from bench.transport.cases import digit_images
from gossamer import optim, prox
from gossamer.schedules import Cubic

MLP, LENET = "MLP 64-256-128-10", "LeNet-like"
SPLIT_SEED = 0
MOMENTUM = 0.9

DENSE, SMALL = "dense, nothing cut", "small from scratch"
MAGNITUDE, GRADUAL = "magnitude, at once", "magnitude, gradually"
LASSO, L1, LP = "group lasso", "l1", "group lp, p = 1/2"
WGSEF, UNBIASED = "WGSEF", "WGSEF, unbiased"

# What each method may choose on the validation images: its strength, or the weight decay where it
# has none. All have equally many.
DECAYS = (0.0, 1e-4, 1e-3, 1e-2)
STRENGTHS: dict[str, tuple[float, ...]] = {
    DENSE: DECAYS,
    SMALL: DECAYS,
    MAGNITUDE: DECAYS,
    GRADUAL: DECAYS,
    LASSO: (1e-3, 3e-3, 1e-2, 3e-2),
    L1: (1e-4, 3e-4, 1e-3, 3e-3),
    LP: (1e-3, 3e-3, 1e-2, 3e-2),
    WGSEF: (1e-3, 3e-3, 1e-2, 3e-2),
    UNBIASED: (1e-2, 1e-1, 3e-1, 1.0),
}
PENALISED = (LASSO, L1, LP, WGSEF, UNBIASED)


class Split(NamedTuple):
    """The digits, [n, 1, 8, 8] from 0 to 1, and their labels, in three parts."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Course:
    """How long and how fast everybody is trained.

    Args:
        epochs: with the penalty, until the cut.
        tuning: epochs after the cut.
        batch: images per step.
        lr: learning rate, which falls to zero in a cosine after the cut.
        ramp: share of the epochs before the cut over which k falls to the budget.
    """

    epochs: int = 40
    tuning: int = 20
    batch: int = 50
    lr: float = 0.05
    ramp: float = 0.5


class Trained(NamedTuple):
    """What a training gave.

    Args:
        model: with exact zeros in place of what was cut.
        validation: accuracy at the end.
        test: accuracy at the end.
        at_cut: test accuracy just after the cut, before any fine-tuning.
        left: groups of each hidden layer that the penalty had left before the cut.
        kept: groups of each hidden layer at the end.
        seconds: of the training.
    """

    model: nn.Sequential
    validation: float
    test: float
    at_cut: float
    left: list[int]
    kept: list[int]
    seconds: float


def split_digits() -> Split:
    """1000 images to learn from, 297 to choose by, 500 to judge by.

    Returns:
        The same split each time.

    Raises:
        DataError: scikit-learn is not installed.
    """
    images, labels = digit_images()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    x = torch.from_numpy(images / 16).float()[order, None]
    y = torch.from_numpy(labels)[order]
    parts = (torch.split(z, [1000, 297, 500]) for z in (x, y))
    return Split(*zip(*parts, strict=True))


def build(network: str, widths: Sequence[int] | None = None) -> nn.Sequential:
    """A network of the experiment.

    Args:
        network: ``MLP`` or ``LENET``.
        widths: of its hidden layers; None for the full ones.

    Returns:
        A new model.

    Example:
        >>> [layer.weight.shape[0] for layer in hidden(build(LENET))]
        [16, 32, 64]
    """
    if network == MLP:
        a, b = widths or (256, 128)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, 10)
        )
    a, b, c = widths or (16, 32, 64)
    return nn.Sequential(
        nn.Conv2d(1, a, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4 * b, c), nn.ReLU(), nn.Linear(c, 10),
    )  # fmt: skip


def hidden(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """The layers whose neurons or filters compete; the last layer's are the classes."""
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][:-1]


def widths_of(network: str, share: float) -> list[int]:
    """Groups that each hidden layer keeps.

    Args:
        network: which.
        share: of the groups.

    Returns:
        At least one for each layer.

    Example:
        >>> widths_of(LENET, 0.25)
        [4, 8, 16]
    """
    return [max(1, round(share * m.weight.shape[0])) for m in hidden(build(network))]


def penalty(method: str, strength: float, k: Cubic) -> prox.Penalty:
    """A method's penalty on one layer.

    Args:
        method: one of ``PENALISED``.
        strength: its lambda.
        k: groups that it may keep at a step.

    Returns:
        The penalty.
    """
    if method == L1:
        return prox.L1(strength)
    if method == LASSO:
        return prox.L1(strength, groups="neuron")
    if method == LP:
        return prox.Lp(lam=strength, p=0.5, groups="neuron")
    return prox.WGSEF(k=k, lam=strength, groups="neuron", unbiased=method == UNBIASED)


def train(
    network: str, method: str, share: float, strength: float, seed: int, course: Course, data: Split
) -> Trained:
    """Train once.

    Args:
        network: which.
        method: how it becomes small.
        share: of each hidden layer's groups that it may keep.
        strength: of the penalty, or the weight decay.
        seed: of the initial weights and of the order of the images.
        course: how long.
        data: the images.

    Returns:
        The model and what it reached.
    """
    torch.manual_seed(seed)
    keep = widths_of(network, share)
    model = build(network, keep if method == SMALL else None)
    layers = hidden(model)
    decay = 0.0 if method in PENALISED else strength
    ramp = int(course.ramp * course.epochs * steps(course, data))
    falling = [Cubic(m.weight.shape[0], k, 0, ramp) for m, k in zip(layers, keep, strict=True)]
    start = time.perf_counter()

    def thin(step: int) -> None:
        if method == GRADUAL:
            cut(layers, [round(k(step)) for k in falling])
        elif method in PENALISED:
            _drop_biases(layers)

    penalties = [penalty(method, strength, k) if method in PENALISED else None for k in falling]
    optimizer = _optimizer(model, layers, penalties, course, decay)
    for step, batch in enumerate(_batches(data.train, course.batch, course.epochs, seed)):
        _learn(model, optimizer, batch)
        thin(step)
    left = _alive(layers)
    if method not in (DENSE, SMALL):
        cut(layers, keep)
    at_cut = accuracy(model, data.test)
    # A new optimizer: momentum would revive what is cut. A row of zeros gets no gradient.
    optimizer = _optimizer(model, layers, [None] * len(layers), course, decay)
    pace = CosineAnnealingLR(optimizer, course.tuning * steps(course, data))
    for batch in _batches(data.train, course.batch, course.tuning, seed + 1000):
        _learn(model, optimizer, batch)
        pace.step()
    seconds = time.perf_counter() - start
    validation, test = (accuracy(model, part) for part in (data.validation, data.test))
    return Trained(model, validation, test, at_cut, left, _alive(layers), seconds)


def steps(course: Course, data: Split) -> int:
    """Optimizer steps of one epoch."""
    return -(-len(data.train[0]) // course.batch)


def _optimizer(
    model: nn.Sequential,
    layers: Sequence[nn.Linear | nn.Conv2d],
    penalties: Sequence[prox.Penalty | None],
    course: Course,
    decay: float,
) -> optim.ProxSGD:
    weights = {id(m.weight) for m in layers}
    rest = [p for p in model.parameters() if id(p) not in weights]
    groups: list[dict[str, Any]] = [
        {"params": [m.weight], "penalty": one} for m, one in zip(layers, penalties, strict=True)
    ]
    groups.append({"params": rest, "penalty": None})
    return optim.ProxSGD(groups, lr=course.lr, momentum=MOMENTUM, weight_decay=decay)


def _learn(
    model: nn.Sequential, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _batches(
    part: tuple[Tensor, Tensor], batch: int, epochs: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    x, y = part
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, len(x), batch):
            chosen = order[start : start + batch]
            yield x[chosen], y[chosen]


@torch.no_grad()
def _drop_biases(layers: Sequence[nn.Linear | nn.Conv2d]) -> None:
    """A neuron whose weights are all zero loses its bias: it would be a constant, not gone."""
    for layer in layers:
        if layer.bias is not None:
            layer.bias.mul_(layer.weight.flatten(1).any(1))


@torch.no_grad()
def cut(layers: Sequence[nn.Linear | nn.Conv2d], keep: Sequence[int]) -> None:
    """Keep the neurons or filters of largest norm, and set the others to zero.

    Args:
        layers: hidden layers, written to.
        keep: groups of each.
    """
    for layer, k in zip(layers, keep, strict=True):
        norms = layer.weight.flatten(1).norm(dim=1)
        gone = norms.argsort(descending=True, stable=True)[k:]
        layer.weight[gone] = 0
        if layer.bias is not None:
            layer.bias[gone] = 0


def _alive(layers: Sequence[nn.Linear | nn.Conv2d]) -> list[int]:
    return [int(m.weight.flatten(1).any(1).sum()) for m in layers]


@torch.no_grad()
def accuracy(model: Callable[[Tensor], Tensor], part: tuple[Tensor, Tensor]) -> float:
    """Share of images whose label is found, in [0, 1]."""
    x, y = part
    return float((model(x).argmax(1) == y).double().mean())
