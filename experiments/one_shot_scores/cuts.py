"""One cut of a small GPT that was trained densely, without training after: a row."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

import gossamer
from bench.harness.rows import Row
from gossamer import timing
from gossamer.pruning import by_row, drawn, fisher, grasp, random_scores, snip, wanda
from gossamer.train import Corpus, Run, TrainConfig, Windows, load_corpus, spaced_windows

VALIDATION_TOKENS = 16_384
CALIBRATION = 128  # windows of the text that was trained on

PLAN = TrainConfig(steps=600, width=160, depth=2, heads=4, context=64, batch=8, lr=3e-3, threads=1)
# The fields of the plan that make rows comparable.
FIELDS = ("steps", "width", "depth", "heads", "context", "batch", "lr", "data")

Scores = Mapping[str, Tensor]
Score = Scores | str | Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class Cut:
    """One cut.

    Args:
        score: one of SCORES.
        pattern: its text.
        seed: of the dense model, and of what is random.
    """

    score: str
    pattern: str
    seed: int

    @property
    def row(self) -> Row:
        """The columns that name this cut."""
        return asdict(self)


def _magnitude(model: nn.Module) -> Scores:
    return {
        name: module.weight.detach().abs()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Each function gets the dense model, its inputs and targets, and the seed.
SCORES: dict[str, Callable[[nn.Module, Tensor, Tensor, int], Score]] = {
    "magnitude": lambda model, x, y, seed: _magnitude(model),
    "magnitude, by row": lambda model, x, y, seed: by_row(_magnitude(model)),
    "Wanda, by row": lambda model, x, y, seed: by_row(wanda(model, parts(x, 32))),
    "Wanda, by layer": lambda model, x, y, seed: wanda(model, parts(x, 32)),
    "Fisher": lambda model, x, y, seed: fisher(model, [_loss(*one) for one in _pairs(x, y)]),
    "SNIP": lambda model, x, y, seed: snip(model, _loss(x, y)),
    "GraSP": lambda model, x, y, seed: grasp(model, _loss(x, y)),
    "drawn by magnitude": lambda model, x, y, seed: drawn(_magnitude(model), _random(seed)),
    "drawn by Wanda": lambda model, x, y, seed: drawn(wanda(model, parts(x, 32)), _random(seed)),
    "random": lambda model, x, y, seed: random_scores(seed),
}


def _pairs(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(parts(x, 1), parts(y, 1), strict=True))


def parts(x: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return parts of so many windows."""
    return torch.split(x, size)


def _loss(x: Tensor, y: Tensor) -> Callable[[nn.Module], Tensor]:
    return lambda model: nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())


def measure(plan: TrainConfig, cut: Cut) -> Row:
    """Cut once.

    Args:
        plan: what is trained.
        cut: how it is cut.

    Returns:
        A row with the validation losses of the dense and the cut model, in nats per byte.
    """
    with timing.threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the head, which is the embedding
        dense, loss = _dense(plan, cut.seed)
        model = copy.deepcopy(dense)
        score = _scores(plan, cut.seed, cut.score)
        model = gossamer.sparsify(model, cut.pattern, score=score)
        return cut.row | {"dense_loss": loss, "loss": _evaluate(model, plan)}


@cache
def _scores(plan: TrainConfig, seed: int, name: str) -> Score:
    windows = Windows(corpus_of(plan).train, plan.context, CALIBRATION, 10_000 + seed)
    return SCORES[name](_dense(plan, seed)[0], *windows.batch(0), seed)


@cache
def _dense(plan: TrainConfig, seed: int) -> tuple[nn.Module, float]:
    corpus = corpus_of(plan)
    run = Run("dense", replace(plan, runs=("dense",), seed=seed), corpus.vocabulary)
    windows = Windows(corpus.train, plan.context, plan.batch, seed)
    for step in range(plan.steps):
        run.step(*windows.batch(step))
    model = run.model.eval()
    return model, _evaluate(model, plan)


@torch.no_grad()
def _evaluate(model: nn.Module, plan: TrainConfig) -> float:
    windows = VALIDATION_TOKENS // plan.context
    x, y = spaced_windows(corpus_of(plan).validation, plan.context, windows)
    pairs = zip(parts(x, 64), parts(y, 64), strict=True)
    return sum(float(_loss(*pair)(model)) * len(pair[0]) for pair in pairs) / len(x)


@cache
def _corpus(data: str | None, context: int) -> Corpus:
    return load_corpus(data, "byte", context)


def corpus_of(plan: TrainConfig) -> Corpus:
    """The text of a plan."""
    return _corpus(plan.data, plan.context)
