"""One training of a GPT of one block under one pattern: a row.

A token's input is the sum of the embeddings of the last four bytes, so that a short training gets
beyond pairs of bytes and its matrices matter.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

import gossamer
from bench.harness.rows import Row
from gossamer import timing
from gossamer.nn import MaskedLayer
from gossamer.recipes import SRSTE, Recipe, Static
from gossamer.train import GPT, Corpus, GPTConfig, Windows, load_corpus, spaced_windows

BYTES = 4  # that a token's input sums
VALIDATION_TOKENS = 8_192
WEIGHT_DECAY, BETAS, CLIP = 0.1, (0.9, 0.95), 1.0
RECIPES = ("static", "srste")


@dataclass(frozen=True)
class Plan:
    """What every training has in common.

    Args:
        steps: of the optimizer.
        batch: windows per step.
        context: bytes per window.
        width: features; at least 512, so that 128 rows are a quarter of a matrix at most.
        depth: blocks.
        heads: per block.
        scale_lr: exponent of the density in the learning rate of the sparse layers.
        data: file or folder of text; None for the source of Python's library.
    """

    steps: int = 300
    batch: int = 4
    context: int = 32
    width: int = 512
    depth: int = 1
    heads: int = 8
    scale_lr: float = 1.0
    data: str | None = None

    @property
    def row(self) -> Row:
        """The columns of the file's first line."""
        return asdict(self)


@dataclass(frozen=True)
class Training:
    """One training.

    Args:
        recipe: "dense", "static" (random masks) or "srste" (masks that follow a dense weight).
        pattern: of the linear layers; "dense" for dense.
        lr: peak learning rate.
        seed: of weights, masks and data order.
    """

    recipe: str
    pattern: str
    lr: float
    seed: int

    @property
    def row(self) -> Row:
        """The columns that name this training."""
        return asdict(self)

    def make_recipe(self) -> Recipe | None:
        """The recipe, or None for dense."""
        if self.recipe == "dense":
            return None
        return (
            SRSTE(self.pattern) if self.recipe == "srste" else Static(self.pattern, seed=self.seed)
        )


class ShortMemoryGPT(GPT):
    """A GPT whose input at a position is the sum of the embeddings of the last bytes."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        tables = [nn.Embedding(config.vocabulary, config.width) for _ in range(BYTES - 1)]
        for table in tables:
            nn.init.normal_(table.weight, std=0.02)
        self.before = nn.ModuleList(tables)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict the next token at every position, from int64 [batch, length]."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for back, table in enumerate(self.before, 1):
            x = x + table(F.pad(tokens, (back, 0))[:, : tokens.shape[1]])
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


def measure(plan: Plan, training: Training) -> Row:
    """Train once.

    Args:
        plan: what is trained.
        training: by what.

    Returns:
        A row with the validation loss in nats, the density, the share of the input columns that
        no row of a matrix keeps, and the share of the kept entries that the first mask had not;
        "diverged" instead if a loss was not finite.
    """
    with timing.threads(1):
        return training.row | _trained(plan, training)


def _trained(plan: Plan, training: Training) -> Row:
    corpus = corpus_of(plan)
    torch.manual_seed(training.seed)
    model = ShortMemoryGPT(
        GPTConfig(corpus.vocabulary, plan.context, plan.width, plan.depth, plan.heads)
    )
    recipe = training.make_recipe()
    if recipe is not None:
        recipe.prepare(model, rescale=True)
    groups = gossamer.parameter_groups(
        model, WEIGHT_DECAY, undecayed=(nn.Embedding,), scale_lr=plan.scale_lr
    )
    optimizer = torch.optim.AdamW(groups, lr=training.lr, betas=BETAS, fused=True)
    schedule = OneCycleLR(
        optimizer, training.lr, plan.steps, pct_start=0.1, cycle_momentum=False,
        div_factor=10.0, final_div_factor=1.0,
    )  # fmt: skip
    if recipe is not None:
        recipe.attach(model, optimizer, plan.steps)
    first = [layer.mask() for layer in _masked(model)]
    windows = Windows(corpus.train, plan.context, plan.batch, training.seed)
    losses: list[float] = []
    for step in range(plan.steps):
        optimizer.zero_grad()
        loss = model.loss(*windows.batch(step))
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        if not losses[-1] < float("inf"):
            return {"diverged": f"the loss is {losses[-1]} at step {step}"}
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
    last = [layer.mask() for layer in _masked(model)]
    kept = max(sum(int(mask.sum()) for mask in last), 1)
    moved = sum(int((new & ~old).sum()) for old, new in zip(first, last, strict=True))
    dead = [float((~mask.any(0)).float().mean()) for mask in last]
    return {
        "val_loss": _evaluate(model, plan, corpus),
        "train_loss": statistics.fmean(losses[-20:]),
        "density": kept / max(sum(mask.numel() for mask in last), 1) if last else 1.0,
        "dead_columns": statistics.fmean(dead) if dead else 0.0,
        "moved": moved / kept,
    }


def _masked(model: nn.Module) -> list[MaskedLayer]:
    return [module for module in model.modules() if isinstance(module, MaskedLayer)]


@torch.no_grad()
def _evaluate(model: GPT, plan: Plan, corpus: Corpus) -> float:
    held_out = spaced_windows(corpus.validation, plan.context, VALIDATION_TOKENS // plan.context)
    model.eval()
    total = 0.0
    for start in range(0, len(held_out[0]), 64):
        inputs, targets = (part[start : start + 64] for part in held_out)
        total += model.loss(inputs, targets).item() * len(inputs)
    return total / len(held_out[0])


@cache
def _corpus(data: str | None, context: int) -> Corpus:
    return load_corpus(data, "byte", context)


def corpus_of(plan: Plan) -> Corpus:
    """The text of a plan."""
    return _corpus(plan.data, plan.context)
