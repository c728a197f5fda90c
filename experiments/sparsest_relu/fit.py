"""Training towards the sparsest network: Adam on all points at once, then a proximal step.

`exact`: the joint prox of the path norm's majoriser (`prox.path_norm.joint_prox_`) on neurons kept
balanced (`balance_`). Three things let it do with a fifth of the paper's epochs: its penalty is
strong (thirty times the paper's or more), it pauses while the error is beyond `guard` times the
variance of y, so that no neuron that the data need is lost for good, and the learning rate and the
penalty fade over the last part, so that the error goes to rounding. Data whose small bends matter
need a smaller guard and penalty: a bend whose absence costs less than the guard may go.

`reweighted`: the paper's algorithm with its constants, no guard, no fading.
`adam`, `adamw`: no penalty, and weight decay.
"""

import math
import time
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch

from experiments.sparsest_relu.model import ShallowReLU
from experiments.sparsest_relu.points import Points
from gossamer import DataError
from gossamer.prox.path_norm import (
    balance_,
    joint_prox_,
    path_norm,
    path_thresholds,
    reweighted_split_,
)
from gossamer.timing import threads

__all__ = ["Fit", "FitConfig", "Row", "fit"]

Method = Literal["exact", "reweighted", "adam", "adamw"]
METHODS: tuple[str, ...] = get_args(Method)
# Weight of the penalty, for one input and for several; the paper's in the second line.
PENALTY = {"exact": (0.3, 0.15), "reweighted": (0.003, 0.005), "adam": (0, 0), "adamw": (0, 0)}
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
WEIGHT_DECAY = 0.01
FIRST_PROX = 6  # Adam's moments know nothing before
FADE = 0.2  # the last part of a run with `exact`
LEAST = 1e-6  # the share of the penalty that a pause leaves: what is zero has to stay zero
ROWS = 200


@dataclass(frozen=True)
class FitConfig:
    """What `fit` does.

    Args:
        method: "exact", "reweighted", "adam" or "adamw".
        p: of the path norm, in (0, 1].
        neurons: at the start.
        epochs: steps, each on all points.
        lr: of Adam.
        penalty: weight of the path norm; None: the method's own.
        guard: mean squared error, over the variance of y, at which `exact` pauses.
        seed: of the initial weights.

    Raises:
        DataError: a value out of range.
    """

    method: str = "exact"
    p: float = 0.4
    neurons: int = 80
    epochs: int = 20_000
    lr: float = 0.01
    penalty: float | None = None
    guard: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise DataError(f"method is {self.method!r}; one of {', '.join(METHODS)} is needed")
        if not 0 < self.p <= 1:
            raise DataError(f"p is {self.p}; a number in (0, 1] is needed")
        for name in ("neurons", "epochs"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} is {getattr(self, name)}; at least 1 is needed")
        for name in ("lr", "guard"):
            if not 0 < getattr(self, name) < math.inf:
                raise DataError(f"{name} is {getattr(self, name)}; a positive number is needed")
        if self.penalty is not None and not 0 <= self.penalty < math.inf:
            raise DataError(f"penalty is {self.penalty}; a number of at least 0 is needed")


class Row(NamedTuple):
    """The network after an epoch: neurons with a product that is not zero, and such products."""

    epoch: int
    neurons: int
    nonzeros: int
    mse: float
    path_norm: float


@dataclass(frozen=True)
class Fit:
    """A trained network and how it became so.

    Args:
        config: of the run.
        model: the network at the end.
        rows: about 200, in order; the last is the end.
        seconds: of the whole run, one thread.
    """

    config: FitConfig
    model: ShallowReLU
    rows: list[Row] = field(repr=False)
    seconds: float

    @property
    def last(self) -> Row:
        """The network at the end."""
        return self.rows[-1]


def fit(points: Points, config: FitConfig) -> Fit:
    """Train a network on the points.

    Args:
        points: to pass through.
        config: method and constants.

    Returns:
        The network, and its history.

    Raises:
        DataError: the training diverged.

    Reference: Nakhleh & Nowak 2025 (arXiv 2505.21791), the reweighted algorithm.
    """
    with threads(1), torch.no_grad():  # a neuron's row is far too small to share
        return _fit(points, config)


def _fit(points: Points, config: FitConfig) -> Fit:
    model = ShallowReLU(points, config.neurons, config.seed)
    theta, grad = model.theta, model.grad
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    exact = config.method == "exact"
    weight = config.penalty
    if weight is None:
        weight = PENALTY[config.method][0 if points.univariate else 1]
    limit = config.guard * (points.variance or 1.0)
    every = max(1, config.epochs // ROWS)
    if exact:
        balance_(*model.parts[:3])
    rows, start = [], time.perf_counter()
    for epoch in range(1, config.epochs + 1):
        loss = model.gradient()
        if epoch % every == 1 or every == 1:
            rows.append(_row(model, epoch - 1, loss, config.p))
        products = model.products() if weight else None  # of before Adam's step, a copy
        fade = min(1.0, (config.epochs - epoch) / (FADE * config.epochs)) if exact else 1.0
        rate = config.lr * fade
        first.lerp_(grad, 1 - BETA1)
        second.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
        scale = second.sqrt().div_(math.sqrt(1 - BETA2**epoch)).add_(EPS)
        if config.method == "adamw":
            theta.mul_(1 - rate * WEIGHT_DECAY)
        theta.addcdiv_(first, scale, value=-rate / (1 - BETA1**epoch))
        if products is None or epoch < FIRST_PROX:
            continue
        if exact:
            open_ = max(LEAST, 1 - loss / limit) * max(LEAST, fade)
            _joint_step(model, path_thresholds(products, config.p, rate * weight * open_))
        else:
            v, w, bias, _ = model.parts
            reweighted_split_(v, w, path_thresholds(products, config.p, rate * weight), bias)
    rows.append(_row(model, config.epochs, model.gradient(), config.p))
    return Fit(config, model, rows, time.perf_counter() - start)


def _joint_step(model: ShallowReLU, thresholds: torch.Tensor) -> None:
    v, w, bias, _ = model.parts
    before = None if bias is None else w[:, 0].clone()
    joint_prox_(v, w, thresholds)
    if bias is not None and before is not None:
        # A free bias beside a smaller w would be a kink elsewhere.
        bias.mul_(torch.where(before == 0, 1.0, w[:, 0] / before))
    balance_(v, w, bias)


def _row(model: ShallowReLU, epoch: int, loss: float, p: float) -> Row:
    alive = model.alive()
    if not math.isfinite(loss):
        raise DataError(
            f"the training left the numbers at epoch {epoch}: mean squared error {loss}; "
            "take a smaller lr or scale the data"
        )
    return Row(
        epoch, int(alive.any(1).sum()), int(alive.sum()), loss,
        path_norm(model.parts.v, model.parts.w * alive, p),
    )  # fmt: skip
