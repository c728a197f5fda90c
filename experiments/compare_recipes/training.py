"""One recipe in training, measured: a row of the table of recipes."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import cache

import torch
from torch import Tensor, nn

from bench.harness.rows import Row
from gossamer import GossamerError, timing
from gossamer.nn import MaskedLayer
from gossamer.recipes import entry, make
from gossamer.train import Corpus, Run, TrainConfig, Windows, load_corpus, spaced_windows

DENSE = "dense"
VALIDATION_TOKENS = 16_384
WATCHED = 10  # steps between two looks at the masks
# Steps of the training in which the time of a step is measured, all parts of a schedule in it.
TIMED = 24
WARM = 2

# What every recipe trains; the width is a multiple of 40, so that 1:10 fits with 4 heads.
PLAN = TrainConfig(
    steps=300, width=160, depth=2, heads=4, context=64, batch=8, lr=1.5e-3, threads=1
)
# The fields of the plan that make rows comparable.
FIELDS = ("steps", "width", "depth", "heads", "context", "batch", "data")


class Stage(StrEnum):
    """What a training is for."""

    TUNE = "tune"  # to choose the learning rate: short, on one seed
    TRAIN = "train"
    PARTS = "parts"  # as long as every part of a recipe that sets weights back has all the steps
    TIME = "time"  # of a step; no loss


@dataclass(frozen=True)
class Training:
    """One training of the table.

    Args:
        recipe: its name, or "dense".
        sparsity: in percent; 0 for dense.
        seed: of weights and data order.
        steps: of it.
        lr: learning rate.
        stage: what it is for.
    """

    recipe: str
    sparsity: int
    seed: int
    steps: int
    lr: float
    stage: Stage = Stage.TRAIN

    @property
    def run(self) -> str:
        """The text of the run, as `gossamer train --compare` takes it."""
        if self.recipe == DENSE:
            return DENSE
        return f"{self.recipe}@{entry(self.recipe).patterns[self.sparsity]}"

    @property
    def row(self) -> Row:
        """The columns that name this training."""
        return asdict(self)

    def config(self, plan: TrainConfig) -> TrainConfig:
        """The options of this training, on one thread."""
        return replace(
            plan, runs=(self.run,), seed=self.seed, steps=self.steps, lr=self.lr, threads=1
        )


def parts_of(training: Training) -> int:
    """Parts of its steps between which the recipe sets weights back to earlier ones."""
    if training.recipe == DENSE:
        return 1
    recipe = make(training.recipe, entry(training.recipe).patterns[training.sparsity])
    return training.steps // recipe.position(0, training.steps)[1]


def measure(plan: TrainConfig, training: Training) -> Row:
    """Train once and evaluate what its recipe leaves in the end.

    Args:
        plan: what every recipe trains.
        training: which.

    Returns:
        A row of plain values; with "error" instead of numbers if Gossamer or torch refused.
    """
    try:
        with timing.threads(1), warnings.catch_warnings():
            # What stays dense is shown by the density of the finished model.
            warnings.simplefilter("ignore", UserWarning)
            return training.row | _trained(plan, training)
    # Whatever a recipe raises, the table says so and the others go on.
    except Exception as error:
        return training.row | {"error": f"{type(error).__name__}: {error}"[:500]}


def time_step(plan: TrainConfig, training: Training) -> Row:
    """Time the steps of a short training against dense ones, in turn, on one thread.

    The schedule is as short as the training, so all its parts take part, and the mean counts.

    Args:
        plan: what every recipe trains.
        training: which.

    Returns:
        A row with seconds a step of both; with "error" if there are none.
    """
    try:
        with timing.threads(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            corpus = _corpus(plan.data, plan.context)
            dense = replace(training, recipe=DENSE, sparsity=0)
            runs = {
                one.run: Run(one.run, one.config(plan), corpus.vocabulary)
                for one in (dense, training)
            }
            windows = Windows(corpus.train, plan.context, plan.batch, training.seed)
            for step in range(training.steps):
                for name in timing.rotation(list(runs), step):
                    runs[name].step(*windows.batch(step))
    except Exception as error:
        return training.row | {"error": f"{type(error).__name__}: {error}"[:500]}
    own, other = (statistics.fmean(runs[n].step_seconds[WARM:]) for n in (training.run, DENSE))
    return training.row | {"step_seconds": own, "dense_seconds": other}


def fingerprint(plan: TrainConfig) -> str:
    """Of the text that every recipe trains on."""
    return _corpus(plan.data, plan.context).fingerprint


@cache
def _corpus(data: str | None, context: int) -> Corpus:
    return load_corpus(data, "byte", context)


def _trained(plan: TrainConfig, training: Training) -> Row:
    corpus = _corpus(plan.data, plan.context)
    run = Run(training.run, training.config(plan), corpus.vocabulary)
    windows = Windows(corpus.train, plan.context, plan.batch, training.seed)
    layers = {} if run.recipe is None else run.recipe.layers
    before = masks(layers)
    flips: list[float] = []
    losses: list[float] = []
    for step in range(training.steps):
        losses.append(run.step(*windows.batch(step)))
        if layers and (step + 1) % WATCHED == 0:
            now = masks(layers)
            flips.append(flipped(before, now))
            before = now
    state = run.state_bytes
    if run.recipe is not None:
        run.recipe.finish(run.model)
    held_out = spaced_windows(corpus.validation, plan.context, VALIDATION_TOKENS // plan.context)
    val_loss = run.evaluate(*held_out)
    if not val_loss < float("inf"):
        raise GossamerError(f"the validation loss of the finished model is {val_loss}")
    return {
        "pattern": training.run.partition("@")[2] or DENSE,
        "val_loss": val_loss,
        "train_loss": statistics.fmean(losses[-20:]),
        "state_bytes": state,
        "flips": statistics.fmean(flips) if flips else 0.0,
        "density": final_density(run.model, plan),
    }


@torch.no_grad()
def masks(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Masks of prepared layers now, as flat bool tensors by name."""
    found = {}
    for name, layer in layers.items():
        for inner, module in layer.named_modules():
            if isinstance(module, MaskedLayer):
                found[f"{name}.{inner}"] = module.mask().flatten()
    return found


def flipped(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """Share of the entries that came or went between two looks.

    Example:
        >>> old, new = torch.tensor([True, False, True, True]), torch.tensor([True] * 4)
        >>> flipped({"0": old}, {"0": new})
        0.25
    """
    both = [name for name in after if name in before and after[name].shape == before[name].shape]
    changed = sum(int((before[name] ^ after[name]).sum()) for name in both)
    return changed / max(1, sum(after[name].numel() for name in both))


def final_density(model: nn.Module, plan: TrainConfig) -> float:
    """Entries of a finished model's linear layers that are not 0, over those of its dense twin."""
    nonzero = 0
    for module in model.modules():
        if isinstance(module, MaskedLayer):
            stored_dense = module.sparse_weight is None
            used = module.used_weight() if stored_dense else module.kept_values()
            nonzero += int((used != 0).sum())
        elif isinstance(module, nn.Linear):
            nonzero += int((module.weight != 0).sum())
    return nonzero / (plan.depth * 12 * plan.width**2)
