"""One small GPT, trained densely, pruned once, and trained on in one of several ways: a row."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

import gossamer
from bench.harness.rows import Row
from gossamer import SparseWeight, timing
from gossamer.nn import AdaptedLinear, SparseLinear, merge_spp, with_spp
from gossamer.pruning import by_row, wanda
from gossamer.train import GPT, Corpus, GPTConfig, Windows, load_corpus, spaced_windows

VALIDATION_TOKENS = 16_384
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.1, 1.0
FULL, SPP, LORA = "full", "SPP", "LoRA, masked at the end"
RATES = {FULL: (1e-3, 3e-3, 1e-2), SPP: (3e-2, 1e-1, 3e-1), LORA: (1e-3, 3e-3, 1e-2)}


@dataclass(frozen=True)
class Plan:
    """What all trainings have in common.

    Args:
        steps: of the dense training.
        tuning: steps after the pruning.
        batch: windows per step.
        context: bytes per window.
        width: features of the GPT.
        depth: its blocks.
        lr: peak learning rate of the dense training.
        rank: of SPP.
        lora_rank: of LoRA.
        data: file or folder of text; None for the source of Python's library.
    """

    steps: int = 600
    tuning: int = 150
    batch: int = 8
    context: int = 64
    width: int = 160
    depth: int = 2
    lr: float = 1.5e-3
    rank: int = 16
    lora_rank: int = 8
    data: str | None = None

    @property
    def row(self) -> Row:
        """The columns of the file's first line."""
        return asdict(self)


@dataclass(frozen=True)
class Tuning:
    """One training after a pruning.

    Args:
        pattern: of the pruning.
        score: "magnitude" or "wanda".
        method: of `RATES`.
        lr: its peak learning rate.
        seed: of weights and data order.
    """

    pattern: str
    score: str
    method: str
    lr: float
    seed: int

    @property
    def row(self) -> Row:
        """The columns that name this training."""
        return asdict(self)


def measure(plan: Plan, tuning: Tuning) -> Row:
    """Prune once, train on, and evaluate the sparse model that is left.

    Args:
        plan: what is trained.
        tuning: how.

    Returns:
        A row with the losses of the dense model, after the pruning and after the training, in nats
        per byte; `choice` is that of other text, to choose the rate by; `trained` counts what
        trains.
    """
    with timing.threads(1):
        dense, dense_loss = _dense(plan, tuning.seed)
        model = _pruned(dense, plan, tuning)
        masks = [layer.mask() for layer in _layers(model)]
        before = _evaluate(model, plan)
        if tuning.method == SPP:
            with_spp(model, plan.rank, generator=torch.Generator().manual_seed(tuning.seed))
        elif tuning.method == LORA:
            _with_lora(model, plan, tuning.seed)
        trained = [p for p in model.parameters() if p.requires_grad]
        if tuning.method == FULL:
            groups = gossamer.parameter_groups(model, WEIGHT_DECAY, undecayed=(nn.Embedding,))
        else:
            groups = [{"params": trained, "weight_decay": 0.0}]
        _train(model, plan, groups, plan.tuning, tuning.lr, tuning.seed + 1000)
        if tuning.method == SPP:
            merge_spp(model)
        elif tuning.method == LORA:
            _mask_lora(model)
        for layer, mask in zip(_layers(model), masks, strict=True):
            if not torch.equal(layer.mask(), mask):
                raise AssertionError("a mask has changed")
        after = _evaluate(model, plan)
        return tuning.row | {
            "dense": dense_loss[0], "pruned": before[0], "val_loss": after[0], "choice": after[1],
            "trained": sum(p.numel() for p in trained),
        }  # fmt: skip


@cache
def _dense(plan: Plan, seed: int) -> tuple[nn.Module, tuple[float, float]]:
    torch.manual_seed(seed)
    model = GPT(GPTConfig(corpus_of(plan).vocabulary, plan.context, plan.width, plan.depth, 4))
    groups = gossamer.parameter_groups(model, WEIGHT_DECAY, undecayed=(nn.Embedding,))
    _train(model, plan, groups, plan.steps, plan.lr, seed)
    return model, _evaluate(model, plan)


def _pruned(dense: nn.Module, plan: Plan, tuning: Tuning) -> nn.Module:
    model = copy.deepcopy(dense)
    score: str | dict[str, Tensor] = "magnitude"
    if tuning.score == "wanda":
        windows = Windows(corpus_of(plan).train, plan.context, plan.batch, tuning.seed + 2000)
        score = wanda(model.eval(), [windows.batch(step)[0] for step in range(8)])
        if ":" not in tuning.pattern:
            score = by_row(score)  # as published; groups of N:M lie within rows anyway
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the head, which is the embedding
        return gossamer.sparsify(model, tuning.pattern, score=score)


def _layers(model: nn.Module) -> list[SparseLinear]:
    return [module for module in model.modules() if isinstance(module, SparseLinear)]


def _with_lora(model: nn.Module, plan: Plan, seed: int) -> None:
    """Freeze a model, and put a dense product of low rank beside each sparse layer."""
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for name, old in list(model.named_modules()):
        if isinstance(old, SparseLinear):
            layer = AdaptedLinear.of_parts(old.weight, old.bias)
            layer.insert(plan.lora_rank, generator)
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, layer)


@torch.no_grad()
def _mask_lora(model: nn.Module) -> None:
    """Add the product to the kept entries, and drop the rest of it."""
    for layer in _layers(model):
        if isinstance(layer, AdaptedLinear):
            kept = SparseWeight.from_dense(
                layer.used_weight(), layer.weight.pattern, mask=layer.mask()
            )
            layer.weight.values.copy_(kept.values)
            layer.adapter = None


def _train(
    model: nn.Module, plan: Plan, groups: Iterable[dict[str, object]], steps: int, lr: float,
    seed: int,
) -> None:  # fmt: skip
    optimizer = torch.optim.AdamW(list(groups), lr=lr, betas=BETAS, fused=True)
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
def _evaluate(model: nn.Module, plan: Plan) -> tuple[float, float]:
    """The losses of every second validation window, and of the others."""
    count = VALIDATION_TOKENS // plan.context
    inputs, targets = spaced_windows(corpus_of(plan).validation, plan.context, count)
    model.eval()
    losses = []
    for part in (slice(0, None, 2), slice(1, None, 2)):
        total = 0.0
        for x, y in zip(torch.split(inputs[part], 64), torch.split(targets[part], 64), strict=True):
            loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
            total += loss.item() * len(x)
        losses.append(total / len(inputs[part]))
    return losses[0], losses[1]


@cache
def _corpus(data: str | None, context: int) -> Corpus:
    return load_corpus(data, "byte", context)


def corpus_of(plan: Plan) -> Corpus:
    """The text of a plan."""
    return _corpus(plan.data, plan.context)
