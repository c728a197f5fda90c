"""One training of a neural probabilistic language model under one pattern: a row.

The next byte is predicted from the embeddings of the last eight, side by side, by residual blocks
of two square matrices. Such a model needs few steps before its matrices matter, and every matrix
has as many rows as the model is wide.

Bengio et al. 2003, "A neural probabilistic language model".
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
from gossamer.train import Corpus, Windows, load_corpus, spaced_windows

BYTES = 8  # that a prediction knows
VALIDATION_TOKENS = 32_768
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
        scale_lr: exponent of the density in the learning rate of the sparse layers.
        data: file or folder of text; None for the source of Python's library.
    """

    steps: int = 800
    batch: int = 8
    context: int = 32
    width: int = 512
    depth: int = 2
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


class ByteModel(nn.Module):
    """Predicts each byte of a window from the eight before it.

    Args:
        vocabulary: number of tokens.
        width: features, a multiple of eight.
        depth: residual blocks.
    """

    def __init__(self, vocabulary: int, width: int, depth: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width // BYTES)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
            )
            for _ in range(depth)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocabulary))

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict the next token at every position, from int64 [batch, length]."""
        length = tokens.shape[1]
        last = [F.pad(tokens, (back, 0))[:, :length] for back in range(BYTES)]
        x = self.tokens(torch.stack(last, -1)).flatten(-2)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)  # type: ignore[no-any-return]

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy of the next token, in nats."""
        return F.cross_entropy(self(inputs).flatten(0, 1), targets.flatten())


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
    model = ByteModel(corpus.vocabulary, plan.width, plan.depth)
    recipe = training.make_recipe()
    if recipe is not None:
        recipe.prepare(model, exclude=["head"], rescale=True)
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
def _evaluate(model: ByteModel, plan: Plan, corpus: Corpus) -> float:
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
