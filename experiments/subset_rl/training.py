"""A small GPT learns to sort digits: some supervised steps, then REINFORCE on what it samples.

The reward is the share of right positions. All linear layers of the blocks train, or chosen entries
of them; everything else is frozen in both cases.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from statistics import fmean
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.harness.rows import Row
from gossamer import timing
from gossamer.nn import merge_subset, train_subset
from gossamer.pruning import changed, chosen, fisher, overlap, stable_ranks
from gossamer.train import GPT, GPTConfig

T = TypeVar("T")
FULL, DIFFERENCE = "all entries", "difference"
MASKS = (DIFFERENCE, "Fisher", "magnitude", "random")
EQUALS = 10  # the token between digits and answer


@dataclass(frozen=True)
class Plan:
    """What all trainings have in common.

    Args:
        digits: to sort.
        width: features of the GPT.
        depth: its blocks.
        supervised: steps of the base model.
        steps: of REINFORCE.
        prompts: per step.
        samples: per prompt, whose mean reward is the baseline.
        lr: learning rate of REINFORCE.
        share: of the entries that train.
        tested: prompts of an evaluation.
        seeds: trainings of each kind, from seed 0.
    """

    digits: int = 8
    width: int = 64
    depth: int = 2
    supervised: int = 60
    steps: int = 150
    prompts: int = 8
    samples: int = 8
    lr: float = 1e-4
    share: float = 0.2
    tested: int = 1024
    seeds: int = 3


@dataclass(frozen=True)
class Run:
    """One training by REINFORCE.

    Args:
        masks: how the entries are chosen; `FULL` trains all.
        seed: of prompts, samples and random masks.
    """

    masks: str
    seed: int

    @property
    def row(self) -> Row:
        """The columns that name this training."""
        return asdict(self)


def measure(plan: Plan, run: Run) -> Row:
    """Train once, and compare with the training of all entries.

    Args:
        plan: what is trained.
        run: how.

    Returns:
        A row with rewards before and after, the share of entries that changed in float32 and in
        bfloat16, and stable ranks; of a subset also how its final weights differ from those of the
        full training.
    """
    with timing.threads(1):
        first = base(plan)
        model = full(plan, run.seed) if run.masks == FULL else _subset(plan, run)
        update = {
            "float32": changed(first, model, 1e-5), "any": changed(first, model),
            "bfloat16": changed(first, model, dtype=torch.bfloat16),
        }  # fmt: skip
        ranks = _inner(stable_ranks(first, model))
        row = run.row | {
            "before": reward(first, plan), "reward": reward(model, plan),
            "rank": fmean(r / plan.width for r in ranks.values()),
            **{f"changed {name}": _share(_inner(masks)) for name, masks in update.items()},
        }  # fmt: skip
        if run.masks == FULL:  # the entries that moved most, beside those of another seed
            mine, other = (_moved(plan, seed) for seed in (run.seed, (run.seed + 1) % plan.seeds))
        else:
            mine, other = masks_of(plan, run), _moved(plan, run.seed)
        both = overlap(mine, other)
        return row | {"overlap": both.first, "chance": both.chance[0]}


@cache
def base(plan: Plan) -> nn.Module:
    """The model after its supervised steps."""
    torch.manual_seed(0)
    context = 2 * plan.digits + 1
    model = GPT(GPTConfig(11, context, plan.width, plan.depth, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(plan.supervised):
        text = prompts(plan, 64, generator)
        text = torch.cat([text, text[:, : plan.digits].sort(1).values], 1)
        logits = model(text[:, :-1])[:, plan.digits :]
        loss = F.cross_entropy(logits.flatten(0, 1), text[:, plan.digits + 1 :].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.requires_grad_(False)


@cache
def full(plan: Plan, seed: int) -> nn.Module:
    """The model whose linear layers have trained as a whole."""
    model = copy.deepcopy(base(plan))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "blocks" in name:
            module.weight.requires_grad_()
    return _reinforce(model, plan, seed)


def masks_of(plan: Plan, run: Run) -> dict[str, Tensor]:
    """The entries that a run trains."""
    first = base(plan)
    if run.masks == DIFFERENCE:
        return _moved(plan, run.seed)
    weights = {n: w.detach() for n, w in _weights(first).items()}
    generator = torch.Generator().manual_seed(run.seed + 5000)
    if run.masks == "random":
        scores = {n: torch.rand(w.shape, generator=generator) for n, w in weights.items()}
    elif run.masks == "magnitude":
        scores = {n: w.abs() for n, w in weights.items()}
    else:
        losses = [partial(_loss, plan=plan, generator=generator, many=1) for _ in range(64)]
        found = _inner(fisher(copy.deepcopy(first).requires_grad_(), losses))
        # The squared gradients alone: fisher multiplies them by the squared weights.
        scores = {n: f / weights[n].square().clamp_min(1e-20) for n, f in found.items()}
    return chosen(scores, plan.share)


def reward(model: nn.Module, plan: Plan) -> float:
    """Mean share of right positions of the most probable answers."""
    text = prompts(plan, plan.tested, torch.Generator().manual_seed(99))
    return float(_right(_answer(model, text, plan, None), plan).mean())


def prompts(plan: Plan, count: int, generator: torch.Generator) -> Tensor:
    """Random digits, and the token that ends them: [count, digits + 1]."""
    digits = torch.randint(10, (count, plan.digits), generator=generator)
    return F.pad(digits, (0, 1), value=EQUALS)


def _subset(plan: Plan, run: Run) -> nn.Module:
    model = train_subset(copy.deepcopy(base(plan)), masks_of(plan, run))
    return merge_subset(_reinforce(model, plan, run.seed))


def _moved(plan: Plan, seed: int) -> dict[str, Tensor]:
    """The share of entries that the full training moves most."""
    before, after = _weights(base(plan)), _weights(full(plan, seed))
    return chosen({n: (after[n] - w).detach().abs() for n, w in before.items()}, plan.share)


def _reinforce(model: nn.Module, plan: Plan, seed: int) -> nn.Module:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=plan.lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed + 10)
    for _ in range(plan.steps):
        optimizer.zero_grad()
        _loss(model, plan, generator, plan.prompts).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def _loss(model: nn.Module, plan: Plan, generator: torch.Generator, many: int) -> Tensor:
    """REINFORCE with the mean reward of a prompt's samples as its baseline."""
    text = prompts(plan, many, generator).repeat_interleave(plan.samples, 0)
    text = _answer(model, text, plan, generator)
    rewards = _right(text, plan).view(many, plan.samples)
    advantage = (rewards - rewards.mean(1, keepdim=True)).flatten()
    logits = model(text[:, :-1])[:, plan.digits :]
    losses = F.cross_entropy(
        logits.flatten(0, 1), text[:, plan.digits + 1 :].flatten(), reduction="none"
    )
    return (losses.view(len(text), -1).sum(1) * advantage).mean()


@torch.no_grad()
def _answer(
    model: nn.Module, text: Tensor, plan: Plan, generator: torch.Generator | None
) -> Tensor:
    for _ in range(plan.digits):
        logits = model(text)[:, -1]
        if generator is None:
            token = logits.argmax(1, keepdim=True)
        else:
            token = torch.multinomial(logits.softmax(1), 1, generator=generator)
        text = torch.cat([text, token], 1)
    return text


def _right(text: Tensor, plan: Plan) -> Tensor:
    wanted = text[:, : plan.digits].sort(1).values
    return (text[:, plan.digits + 1 :] == wanted).float().mean(1)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    named = {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    return _inner(named)


def _inner(found: Mapping[str, T]) -> dict[str, T]:
    return {name: one for name, one in found.items() if "blocks" in name}


def _share(masks: Mapping[str, Tensor]) -> float:
    return sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
