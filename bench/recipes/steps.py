"""A step of training under a recipe beside the same step dense, on the demo's GPT.

SR-STE is measured against its masked-dense twin: the same formulas with torch alone, whose weight
is masked before a dense product. A step is loss, gradients, clipping, and AdamW with the recipe's
own work. All take turns, and medians are compared.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.harness.bars import Bar
from bench.harness.contest import WrongResultError
from bench.harness.plan import Job, Plan, quick
from bench.harness.record import GOSSAMER, Quartiles, Record
from bench.harness.training import SEED, VOCABULARY, state_bytes
from gossamer import NM
from gossamer.recipes import SRSTE, Recipe, SLoPe
from gossamer.timing import interleaved
from gossamer.train import DEMO, GPT, GPTConfig, parameter_groups

GROUP = "recipes"
STEP, STATE = "train step", "training state"
DENSE, TWIN = "dense", "masked dense 2:4:v4"
SRSTE_STEP, SLOPE_STEP, SLOPE_THIN = "SR-STE 2:4:v4", "SLoPe 2:4:v4", "SLoPe 1:8:v4"
RECIPES = (SRSTE_STEP, SLOPE_STEP, SLOPE_THIN)
# SR-STE may take 1.1 times what its twin takes.
BARS = tuple(
    Bar(STEP, (rival,), bound, patterns=(subject,), words=f"{rival} ≥ {bound:.3g}×")
    for subject, rival, bound in (
        (SRSTE_STEP, TWIN, 1 / 1.1),
        (SLOPE_STEP, DENSE, 1.3),
        (SLOPE_THIN, DENSE, 2.0),
    )
)
DECAY = 2e-4
# As `gossamer train` has them.
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.1, 1.0

# The scope is the number of rounds: a step is too long for a budget in seconds.
FULL = Plan(15)
QUICK = quick(2)


class MaskedDense(nn.Module):
    """`nn.Linear` under a moving N:M mask with torch alone: the gradient goes straight through.

    Args:
        linear: whose Parameters are taken over.
        pattern: of the mask.
    """

    def __init__(self, linear: nn.Linear, pattern: NM) -> None:
        super().__init__()
        self.weight, self.bias, self.pattern = linear.weight, linear.bias, pattern
        self.mask = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in_features] to [..., out_features]."""
        used, self.mask = _Masking.apply(self.weight, self.pattern)  # type: ignore[no-untyped-call]
        return F.linear(x, used, self.bias)

    @torch.no_grad()
    def decay(self, rate: float) -> None:
        """Add the decay of what the last forward pass masked to the gradient."""
        if self.weight.grad is not None:
            self.weight.grad.add_(self.weight.mul(rate).masked_fill_(self.mask, 0.0))


class _Masking(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, pattern: NM) -> tuple[Tensor, Tensor]:
        mask = largest(weight, pattern)
        ctx.mark_non_differentiable(mask)
        return weight * mask, mask

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor, None]:
        return g, None


def largest(weight: Tensor, pattern: NM) -> Tensor:
    """The N:M mask of the largest magnitudes, with torch alone; the lower column wins a tie.

    A column's rank in its group is the number of columns that beat it. For groups of 4 that is
    faster than topk and scatter, and than a sort.

    Args:
        weight: [rows, cols].
        pattern: N:M; with a vector the magnitudes of a panel's rows are summed.

    Returns:
        bool [rows, cols], True = kept.
    """
    rows, cols = weight.shape
    scores = weight.abs().view(rows // pattern.vector, pattern.vector, cols).sum(1)
    columns = scores.view(-1, pattern.m).t().contiguous()
    kept = torch.empty(len(columns), columns.shape[1], dtype=torch.bool)
    for i, own in enumerate(columns):
        rank = torch.zeros(columns.shape[1], dtype=torch.int8)
        for j, other in enumerate(columns):
            if j != i:
                rank += other >= own if j < i else other > own
        torch.lt(rank, pattern.n, out=kept[i])
    mask = kept.t().reshape(rows // pattern.vector, 1, cols)
    return mask.expand(-1, pattern.vector, -1).reshape(rows, cols)


class Stepper:
    """A model, its optimizer, and one step of training on the same batch again and again.

    Args:
        model: a dense GPT of its own.
        recipe: prepares it and follows its optimizer; None leaves it as it is.
        twin: mask it with torch alone, by this pattern.
    """

    def __init__(self, model: GPT, recipe: Recipe | None = None, twin: NM | None = None) -> None:
        self.model = model
        self.masked: list[MaskedDense] = []
        if recipe is not None:
            recipe.prepare(model, rescale=True)
        if twin is not None:
            for parent in list(model.modules()):
                for name, child in list(parent.named_children()):
                    if isinstance(child, nn.Linear):
                        self.masked.append(MaskedDense(child, twin))
                        setattr(parent, name, self.masked[-1])
        groups = parameter_groups(model, WEIGHT_DECAY)
        self.optimizer = torch.optim.AdamW(groups, lr=DEMO.lr, betas=BETAS, fused=True)
        if recipe is not None:
            recipe.attach(model, self.optimizer, total_steps=10_000)
        generator = torch.Generator().manual_seed(SEED)
        size = (DEMO.batch, DEMO.context + 1)
        tokens = torch.randint(VOCABULARY, size, generator=generator)
        self.inputs, self.targets = tokens[:, :-1], tokens[:, 1:]

    def step(self) -> float:
        """Train one step.

        Returns:
            The loss before it.
        """
        self.optimizer.zero_grad()
        loss = self.model.loss(self.inputs, self.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for layer in self.masked:
            layer.decay(DECAY)
        self.optimizer.step()
        return float(loss.detach())


def steppers() -> dict[str, Stepper]:
    """All of them, from the same initial weights."""
    torch.manual_seed(SEED)
    start = GPT(GPTConfig(VOCABULARY, DEMO.context, DEMO.width, DEMO.depth, DEMO.heads))

    def own() -> GPT:
        return copy.deepcopy(start)

    return {
        DENSE: Stepper(own()),
        TWIN: Stepper(own(), twin=NM(2, 4, 4)),
        SRSTE_STEP: Stepper(own(), SRSTE("2:4:v4", gradient_decay=DECAY)),
        SLOPE_STEP: Stepper(own(), SLoPe("2:4:v4")),
        SLOPE_THIN: Stepper(own(), SLoPe("1:8:v4")),
    }


def jobs(plan: Plan[int]) -> Iterator[Job]:
    """One job per number of threads: all of them take turns."""
    for threads in plan.threads:
        keys = [
            (topic, _shape(), name, "float32", threads)
            for topic in (STEP, STATE)
            for name in RECIPES
        ]
        title = f"{STEP} under recipes, threads: {threads}"
        yield Job(GROUP, title, threads, keys, partial(_measure, plan, threads))


def _shape() -> str:
    return f"GPT {DEMO.width}x{DEMO.depth}, {DEMO.batch}x{DEMO.context}"


def _measure(plan: Plan[int], threads: int, errors: list[str]) -> list[Record]:
    them = steppers()
    check_twin(them[SRSTE_STEP], them[TWIN])
    timings = interleaved({name: one.step for name, one in them.items()}, plan.scope, 3)
    held = {n: float(state_bytes(one.model, one.optimizer)) for n, one in them.items()}
    found = []
    for name in RECIPES:
        together = {GOSSAMER: timings[name], DENSE: timings[DENSE], TWIN: timings[TWIN]}
        found.append(Record.timed((STEP, _shape(), name, "float32", threads), together))
    for name in RECIPES:
        counted = {GOSSAMER: held[name], DENSE: held[DENSE], TWIN: held[TWIN]}
        found.append(
            Record(
                *(STATE, _shape(), name, "float32", threads),
                density=1.0,
                subject=GOSSAMER,
                unit="B",
                measured={who: Quartiles.exactly(value) for who, value in counted.items()},
                ratios={who: Quartiles.exactly(counted[who] / held[name]) for who in (DENSE, TWIN)},
            )
        )
    return found


def check_twin(ours: Stepper, twin: Stepper, steps: int = 2) -> None:
    """The losses of two steppers agree step by step, so that both do the same work.

    Raises:
        WrongResultError: SR-STE and its twin do not compute the same.
    """
    for _ in range(steps):
        a, b = ours.step(), twin.step()
        if abs(a - b) > 1e-4 * abs(b):
            raise WrongResultError(f"SR-STE's loss is {a}, its masked-dense twin's {b}")
