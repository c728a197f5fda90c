"""One training of a small GPT at one density, learning rate and exponent: a row."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from functools import cache

import torch

from bench.harness.rows import Row
from gossamer import GossamerError, SparseWeight, timing
from gossamer.train import Corpus, Run, TrainConfig, Windows, load_corpus, spaced_windows

VALIDATION_TOKENS = 16_384

# The plan of compare-recipes, whose numbers these explain.
PLAN = TrainConfig(
    steps=300, width=160, depth=2, heads=4, context=64, batch=8, lr=1.5e-3, threads=1
)
# The fields of the plan that make rows comparable; each training has a rate of its own.
FIELDS = ("steps", "width", "depth", "heads", "context", "batch", "data")


@dataclass(frozen=True)
class Training:
    """One training.

    Args:
        sparsity: of the random masks, in percent; 0 is the dense network.
        lr: peak learning rate.
        exponent: of the density in the rate of the sparse layers.
        init: exponent of the density in the variance of their initial values.
        seed: of weights, masks and data order.
    """

    sparsity: int
    lr: float
    exponent: float
    init: float
    seed: int

    @property
    def row(self) -> Row:
        """The columns that name this training."""
        return {
            "sparsity": self.sparsity, "lr": self.lr, "exponent": self.exponent,
            "init": self.init, "seed": self.seed,
        }  # fmt: skip


def measure(plan: TrainConfig, training: Training) -> Row:
    """Train once.

    Args:
        plan: what is trained.
        training: how.

    Returns:
        A row with the validation loss, in nats; "diverged" instead if a loss was not finite.
    """
    name = f"static@{training.sparsity}%" if training.sparsity else "dense"
    config = replace(
        plan, runs=(name,), lr=training.lr, scale_lr=training.exponent, seed=training.seed,
        threads=1,
    )  # fmt: skip
    corpus = corpus_of(plan)
    windows = Windows(corpus.train, plan.context, plan.batch, training.seed)
    held_out = spaced_windows(corpus.validation, plan.context, VALIDATION_TOKENS // plan.context)
    with timing.threads(1):
        run = Run(name, config, corpus.vocabulary)
        _set_variance(run, training.init)
        try:
            losses = [run.step(*windows.batch(step)) for step in range(plan.steps)]
        except GossamerError as error:
            return training.row | {"diverged": str(error)}
        return training.row | {
            "val_loss": run.evaluate(*held_out),
            "train_loss": statistics.fmean(losses[-20:]),
        }


@torch.no_grad()
def _set_variance(run: Run, exponent: float) -> None:
    """Change the variance of the sparse values from the dense one's / d to that / d^exponent."""
    for module in run.model.modules():
        if isinstance(module, SparseWeight):
            module.values.mul_(module.density ** ((1.0 - exponent) / 2))


@cache
def _corpus(data: str | None, context: int) -> Corpus:
    return load_corpus(data, "byte", context)


def corpus_of(plan: TrainConfig) -> Corpus:
    """The text of a plan."""
    return _corpus(plan.data, plan.context)
