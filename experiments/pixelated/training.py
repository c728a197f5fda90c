"""One training of a small GPT whose layers are flat block butterflies, random blocks, or dense."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

import gossamer
from bench.harness.rows import Row
from gossamer import timing
from gossamer.recipes import PixelatedButterfly, Static
from gossamer.train import GPT, Corpus, GPTConfig, Windows, load_corpus, spaced_windows

VALIDATION_TOKENS = 16_384
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.1, 1.0
DENSE, PIXELATED = "dense", "butterfly 3/16 and low rank"

# All but dense keep a quarter of the weights; names are those of the table.
METHODS: dict[str, Callable[[nn.Module, int], object]] = {
    DENSE: lambda model, seed: model,
    PIXELATED: lambda model, seed: PixelatedButterfly("butterfly 3/16").prepare(model),
    "random blocks 13/16 dropped, and low rank": lambda model, seed: PixelatedButterfly(
        "block 16x16 81.25%"
    ).prepare(model),
    "butterfly 4/16": lambda model, seed: Static("butterfly 4/16").prepare(model, rescale=True),
    "random blocks, 75 % dropped": lambda model, seed: Static("block 16x16 75%", seed=seed).prepare(
        model, rescale=True
    ),
}


@dataclass(frozen=True)
class Plan:
    """What every training has in common.

    Args:
        steps: of each training.
        batch: windows per step.
        context: bytes per window.
        width: features of the GPT, a multiple of 128.
        depth: its blocks.
        lr: peak learning rate.
        data: file or folder of text; None for the source of Python's library.
    """

    steps: int = 600
    batch: int = 8
    context: int = 64
    width: int = 256
    depth: int = 2
    lr: float = 2e-3
    data: str | None = None

    @property
    def row(self) -> Row:
        """The columns of the file's first line."""
        return asdict(self)


@dataclass(frozen=True)
class Training:
    """One training.

    Args:
        method: one of METHODS.
        seed: of weights, masks and data order.
    """

    method: str
    seed: int

    @property
    def row(self) -> Row:
        """The columns that name this training."""
        return asdict(self)


def network(method: str, config: GPTConfig, seed: int) -> nn.Module:
    """Return a new model of a method; the head, which is the embedding, stays dense."""
    torch.manual_seed(seed)
    model = GPT(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        METHODS[method](model, seed)
    return model


def optimizer_of(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return the optimizer of a model."""
    groups = gossamer.parameter_groups(model, WEIGHT_DECAY, undecayed=(nn.Embedding,))
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=True)


def measure(plan: Plan, training: Training) -> Row:
    """Train once, on one thread.

    Args:
        plan: what is trained.
        training: how.

    Returns:
        A row with the validation loss in nats per byte, and the share of the weights that the
        layers of the blocks have.
    """
    with timing.threads(1):
        corpus = corpus_of(plan)
        config = GPTConfig(corpus.vocabulary, plan.context, plan.width, plan.depth, 4)
        model = network(training.method, config, training.seed)
        optimizer = optimizer_of(model, plan.lr)
        schedule = OneCycleLR(
            optimizer, plan.lr, max(plan.steps, 2), pct_start=0.1, cycle_momentum=False
        )
        windows = Windows(corpus.train, plan.context, plan.batch, training.seed)
        for step in range(plan.steps):
            train_step(model, optimizer, *windows.batch(step))
            schedule.step()
        whole = plan.depth * 12 * plan.width**2
        return training.row | {
            "val_loss": _evaluate(model, plan), "density": matrices(model) / whole
        }  # fmt: skip


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> None:
    """Take one step."""
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()


def matrices(model: nn.Module) -> int:
    """Return the number of weights that the layers of the blocks multiply by."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if "blocks" in name and (name.endswith("values") or parameter.dim() > 1)
    )


@torch.no_grad()
def _evaluate(model: nn.Module, plan: Plan) -> float:
    windows = VALIDATION_TOKENS // plan.context
    held = spaced_windows(corpus_of(plan).validation, plan.context, windows)
    model.eval()
    total = 0.0
    for start in range(0, len(held[0]), 64):
        inputs, targets = (part[start : start + 64] for part in held)
        loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        total += loss.item() * len(inputs)
    return total / len(held[0])


@cache
def _corpus(data: str | None, context: int) -> Corpus:
    return load_corpus(data, "byte", context)


def corpus_of(plan: Plan) -> Corpus:
    """The text of a plan."""
    return _corpus(plan.data, plan.context)
