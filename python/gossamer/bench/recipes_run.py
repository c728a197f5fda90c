"""One recipe in training, measured: the cells of the table of recipes."""

from __future__ import annotations

import signal
import statistics
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from gossamer import timing
from gossamer.errors import GossamerError
from gossamer.nn import SparseLinear
from gossamer.nn.layers.masked import MaskedLinear
from gossamer.recipes.base.registry import entry
from gossamer.train.config import TrainConfig
from gossamer.train.data import Corpus, Windows, load_corpus, spaced_windows
from gossamer.train.run import Run
from gossamer.train.spec import AT, DENSE

VALIDATION_TOKENS = 16_384
WATCHED = 10  # steps between two looks at the masks
# Steps of the training in which the time of a step is measured, all parts of a schedule in it.
TIMED = 24
WARM = 2

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What everybody trains, and for how long.

    Args:
        steps: of each training.
        width: of the model; a multiple of 40, so that 1:10 fits with 4 heads.
        depth: blocks.
        heads: a block.
        context: tokens a window.
        batch: windows a step.
        lr: peak learning rate.
        data: text; None for the source of Python's standard library.
    """

    steps: int = 300
    width: int = 160
    depth: int = 2
    heads: int = 4
    context: int = 64
    batch: int = 8
    lr: float = 1.5e-3
    data: str | None = None

    def config(self, run: str, seed: int, steps: int | None = None) -> TrainConfig:
        """The options of one training, on one thread."""
        return TrainConfig(
            runs=(run,), steps=steps or self.steps, width=self.width, depth=self.depth,
            heads=self.heads, context=self.context, batch=self.batch, lr=self.lr, seed=seed,
            threads=1, data=self.data,
        )  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One training of the table.

    Args:
        recipe: its name, or "dense".
        sparsity: in percent; 0 for dense.
        seed: of weights and data order.
    """

    recipe: str
    sparsity: int
    seed: int

    @property
    def run(self) -> str:
        """The text of the run, as `gossamer train --compare` takes it."""
        if self.recipe == DENSE:
            return DENSE
        return f"{self.recipe}{AT}{entry(self.recipe).patterns[self.sparsity]}"

    @property
    def row(self) -> Row:
        """The columns that name this cell."""
        return {"recipe": self.recipe, "sparsity": self.sparsity, "seed": self.seed}


def measure(plan: Plan, cell: Cell) -> Row:
    """Train one cell and evaluate what its recipe leaves in the end.

    Args:
        plan: what everybody trains.
        cell: which.

    Returns:
        A row of plain values; with "error" instead of numbers if Gossamer or torch refused.
    """
    try:
        with timing.threads(1), warnings.catch_warnings():
            # What stays dense is told by the density of the finished model.
            warnings.simplefilter("ignore", UserWarning)
            return cell.row | _trained(plan, cell)
    # Whatever a recipe raises, the table is to say so and go on.
    except Exception as error:
        return cell.row | {"error": f"{type(error).__name__}: {error}"[:500]}


def time_step(plan: Plan, cell: Cell) -> Row:
    """Time the steps of a short training against dense ones, in turn, on one thread.

    The schedule is as short as the training, so all its parts take part, and the mean counts.

    Args:
        plan: what everybody trains.
        cell: which.

    Returns:
        A row with seconds a step of both; with "error" if there are none.
    """
    try:
        with timing.threads(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            corpus = _corpus(plan.data, plan.context)
            runs = {
                name: Run(name, plan.config(name, cell.seed, TIMED), corpus.vocabulary)
                for name in dict.fromkeys((DENSE, cell.run))
            }
            windows = Windows(corpus.train, plan.context, plan.batch, cell.seed)
            for step in range(TIMED):
                for name in timing.rotation(list(runs), step):
                    runs[name].step(*windows.batch(step))
    except Exception as error:
        return cell.row | {"timing": True, "error": f"{type(error).__name__}: {error}"[:500]}
    seconds, dense = (statistics.fmean(runs[n].step_seconds[WARM:]) for n in (cell.run, DENSE))
    return cell.row | {"timing": True, "step_seconds": seconds, "dense_seconds": dense}


def become_worker() -> None:
    """Make a process fit for `measure`: one thread, and signals are its parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def fingerprint(plan: Plan) -> str:
    """Of the text that everybody trains on."""
    return _corpus(plan.data, plan.context).fingerprint


@cache
def _corpus(data: str | None, context: int) -> Corpus:
    return load_corpus(data, "byte", context)


def _trained(plan: Plan, cell: Cell) -> Row:
    corpus = _corpus(plan.data, plan.context)
    run = Run(cell.run, plan.config(cell.run, cell.seed), corpus.vocabulary)
    windows = Windows(corpus.train, plan.context, plan.batch, cell.seed)
    layers = {} if run.recipe is None else run.recipe.layers
    before = masks(layers)
    flips: list[float] = []
    losses: list[float] = []
    for step in range(plan.steps):
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
        "pattern": cell.run.partition(AT)[2] or DENSE,
        "val_loss": val_loss,
        "train_loss": statistics.fmean(losses[-20:]),
        "state_bytes": state,
        "flips": statistics.fmean(flips) if flips else 0.0,
        "density": final_density(run.model, plan),
    }


@torch.no_grad()
def masks(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Where the kept entries of prepared layers stand now, as flat bool tensors by name."""
    found = {}
    for name, layer in layers.items():
        for inner, module in layer.named_modules():
            if isinstance(module, MaskedLinear):
                found[f"{name}.{inner}"] = module.mask().flatten()
            elif isinstance(module, SparseLinear):
                found[f"{name}.{inner}"] = module.weight.mask().flatten()
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


def final_density(model: nn.Module, plan: Plan) -> float:
    """Entries of a finished model's linear layers that are not 0, over those of its dense twin."""
    nonzero = 0
    for module in model.modules():
        if isinstance(module, SparseLinear):
            nonzero += int((module.weight.values != 0).sum())
        elif isinstance(module, MaskedLinear):
            nonzero += int((module.used_weight() != 0).sum())
        elif isinstance(module, nn.Linear):
            nonzero += int((module.weight != 0).sum())
    return nonzero / (plan.depth * 12 * plan.width**2)
