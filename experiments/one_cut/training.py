"""One training of a small GPT, and what each cut costs it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from torch import Tensor, nn

import gossamer
from bench.harness.rows import Row
from gossamer import timing
from gossamer.optim.sharpness import CrAM
from gossamer.train import Corpus, Run, TrainConfig, Windows, load_corpus, spaced_windows

ADAMW, LONGER = "AdamW", "AdamW, twice the steps"
# What each training draws its pruned passes from.
PATTERNS: Mapping[str, Sequence[str]] = {
    ADAMW: (),
    LONGER: (),
    "CrAM+ %": ("50%", "70%", "90%"),
    "CrAM+ %, v4": ("50%:v4", "70%:v4", "90%:v4"),
    "CrAM+ n:m": ("2:4", "1:4"),
    "CrAM+ n:m, v4": ("2:4:v4", "1:4:v4"),
}
CUTS = tuple(
    cut + vector
    for vector in ("", ":v4")
    for cut in ("50%", "70%", "80%", "90%", "2:4", "1:4")
)  # fmt: skip
VALIDATION_TOKENS = 16_384

# The small GPT of `compare-recipes`.
PLAN = TrainConfig(steps=600, width=160, depth=2, heads=4, context=64, batch=8, lr=3e-3, threads=1)
FIELDS = ("steps", "width", "depth", "heads", "context", "batch", "lr", "data")


class Training(NamedTuple):
    """One training: its method and seed."""

    method: str
    seed: int

    @property
    def row(self) -> Row:
        """The columns that name this training."""
        return self._asdict()


def measure(plan: TrainConfig, training: Training) -> Row:
    """Train once on one thread, then cut copies of the model.

    Args:
        plan: what every method trains.
        training: which.

    Returns:
        The training, `dense`: the validation loss in nats per byte of the model as it is, and
        `cut`: that of each cut.
    """
    with timing.threads(1):
        corpus = _corpus(plan.data, plan.context)
        twice = 2 if training.method == LONGER else 1
        config = replace(
            plan, runs=("dense",), seed=training.seed, steps=twice * plan.steps, threads=1
        )
        run = Run("dense", config, corpus.vocabulary)
        cram = CrAM(PATTERNS[training.method], exclude=plan.exclude, seed=training.seed)
        cram.attach(run.model, run.optimizer)
        windows = Windows(corpus.train, plan.context, plan.batch, training.seed)
        for at in range(config.steps):
            step(run, cram, *windows.batch(at))
        held_out = spaced_windows(
            corpus.validation, plan.context, VALIDATION_TOKENS // plan.context
        )
        cram.detach()
        model, lost = run.model, {}
        for pattern in CUTS:
            run.model = copy.deepcopy(model)
            gossamer.sparsify(run.model, pattern, exclude=plan.exclude)
            lost[pattern] = run.evaluate(*held_out)
        run.model = model
        return training.row | {"dense": run.evaluate(*held_out), "cut": lost}


def step(run: Run, cram: CrAM, inputs: Tensor, targets: Tensor) -> None:
    """Train on one batch, with a pruned pass if there is something to draw from."""
    run.model.train()
    run.optimizer.zero_grad()
    run.model.loss(inputs, targets).backward()  # type: ignore[no-untyped-call]
    if cram.patterns:
        with cram.perturbed():
            run.model.loss(inputs, targets).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(run.parameters, 1.0)
    run.optimizer.step()
    run.scheduler.step()


@cache
def _corpus(data: str | None, context: int) -> Corpus:
    return load_corpus(data, "byte", context)
