"""One pruning of a small GPT that was trained densely, and the training that follows: a row."""

from __future__ import annotations

import copy
import time
import warnings
from dataclasses import asdict, dataclass
from functools import cache

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

import gossamer
from bench.harness.rows import Row
from gossamer import timing
from gossamer.nn import MaskedLayer
from gossamer.pruning import group_hidden
from gossamer.train import GPT, Corpus, GPTConfig, Windows, load_corpus, spaced_windows

VALIDATION_TOKENS = 16_384
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.1, 1.0


@dataclass(frozen=True)
class Plan:
    """What every training has in common.

    Args:
        steps: of the dense training.
        tuning: steps after the pruning.
        batch: windows per step.
        context: bytes per window.
        width: features of the GPT.
        depth: its blocks.
        lr: peak learning rate of the dense training.
        tuning_lr: peak learning rate after the pruning.
        data: file or folder of text; None for the source of Python's library.
    """

    steps: int = 600
    tuning: int = 100
    batch: int = 8
    context: int = 64
    width: int = 256
    depth: int = 2
    lr: float = 2e-3
    tuning_lr: float = 1e-3
    data: str | None = None

    @property
    def row(self) -> Row:
        """The columns of the file's first line."""
        return asdict(self)


@dataclass(frozen=True)
class Pruning:
    """One pruning.

    Args:
        pattern: N:M, without its vector.
        vector: rows that share their columns.
        grouped: whether rows are grouped first.
        seed: of weights and data order.
    """

    pattern: str
    vector: int
    grouped: bool
    seed: int

    @property
    def row(self) -> Row:
        """The columns that name this pruning."""
        return asdict(self)

    @property
    def text(self) -> str:
        """The text of the whole pattern."""
        return self.pattern if self.vector == 1 else f"{self.pattern}:v{self.vector}"


def measure(plan: Plan, pruning: Pruning) -> Row:
    """Prune once, and train on.

    Args:
        plan: what is trained.
        pruning: how it is pruned.

    Returns:
        A row with the share of the magnitude that is kept, the validation losses of the dense
        model, right after the pruning and after the training that follows, in nats, and the seconds
        of the grouping.
    """
    with timing.threads(1):
        dense, loss = _dense(plan, pruning.seed)
        model = copy.deepcopy(dense)
        before = _size(model)
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the head, which is the embedding
            if pruning.grouped:
                x = torch.zeros(1, plan.context, dtype=torch.int64)
                group_hidden(model, pruning.text, x)
                rest = [name for name in _linear(model) if not name.endswith("up")]
                model = gossamer.sparsify(model, pruning.text, group_rows=rest)
            else:
                model = gossamer.sparsify(model, pruning.text)
        seconds = time.perf_counter() - start
        row = pruning.row | {
            "kept": _size(model) / before,
            "seconds": seconds,
            "dense_loss": loss,
            "pruned_loss": _evaluate(model, plan),
        }
        _train(model, plan, plan.tuning, plan.tuning_lr, pruning.seed + 1000)
        return row | {"val_loss": _evaluate(model, plan)}


@cache
def _dense(plan: Plan, seed: int) -> tuple[nn.Module, float]:
    torch.manual_seed(seed)
    config = GPTConfig(corpus_of(plan).vocabulary, plan.context, plan.width, plan.depth, 4)
    model = GPT(config)
    _train(model, plan, plan.steps, plan.lr, seed)
    return model, _evaluate(model, plan)


def _linear(model: nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | MaskedLayer) and "blocks" in name
    ]


def _size(model: nn.Module) -> float:
    """The sum of the magnitudes of all weights of the blocks."""
    layers = dict(model.named_modules())
    total = 0.0
    for name in _linear(model):
        layer = layers[name]
        entries = layer.entries if isinstance(layer, MaskedLayer) else layer.weight
        total += float(entries.detach().abs().sum())
    return total


def _train(model: nn.Module, plan: Plan, steps: int, lr: float, seed: int) -> None:
    groups = gossamer.parameter_groups(model, WEIGHT_DECAY, undecayed=(nn.Embedding,))
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=True)
    schedule = OneCycleLR(optimizer, lr, max(steps, 2), pct_start=0.1, cycle_momentum=False)
    windows = Windows(corpus_of(plan).train, plan.context, plan.batch, seed)
    model.train()
    for step in range(steps):
        inputs, targets = windows.batch(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def _evaluate(model: nn.Module, plan: Plan) -> float:
    held = spaced_windows(
        corpus_of(plan).validation, plan.context, VALIDATION_TOKENS // plan.context
    )
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
