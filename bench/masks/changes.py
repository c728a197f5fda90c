"""Changes of a mask beside one step of the dense layer, and beside a copy of what moves.

An update drops the smallest entries, grows as many, and moves values and both moments of AdamW. The
dense step is forward and backward of `nn.Linear`, whose time does not depend on the mask.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from bench.harness.bars import Bar
from bench.harness.contest import WrongResultError
from bench.harness.plan import Calls, Job, Plan, time_together
from bench.harness.record import GOSSAMER, Key, Record
from bench.harness.training import SEED
from bench.masks.selection import Scope
from gossamer import SparseLinear, SparseWeight, parse_pattern
from gossamer.masks import check_mask, random_structure
from gossamer.recipes import SET, RigL

GROUP = "changing"
SET_UPDATE, RIGL_UPDATE, MOVE = "SET update", "RigL update", "set_mask"
DENSE, COPY = "dense step", "copy"
PATTERNS = ("2:4", "2:4:v4", "90%", "90%:v4")
MOVED = ("90%", "90%:v4")
BATCH = 512
BARS = (
    Bar(SET_UPDATE, (DENSE,), 2.0, words="at most half a dense step"),
    Bar(RIGL_UPDATE, (DENSE,), 0.5, words="at most two dense steps"),
    Bar(MOVE, (COPY,), 0.2, words="at most five copies of values, ids and moments"),
)


class Updated:
    """A layer under SET or RigL, always one update further.

    Args:
        kind: the recipe.
        text: of the pattern.
        size: rows and columns of the weight.
    """

    def __init__(self, kind: type[SET], text: str, size: int) -> None:
        self.recipe = kind(text, every=1, distribution="uniform")
        self.model = self.recipe.prepare(nn.Sequential(nn.Linear(size, size)))
        self.optimizer = torch.optim.AdamW(self.recipe.parameters(self.model), lr=1e-4)
        self.recipe.attach(self.model, self.optimizer, total_steps=1_000)
        self.x = torch.randn(BATCH, size)
        for _ in range(2):
            self.gradients()
            self.optimizer.step()

    @property
    def weight(self) -> SparseWeight:
        """The sparse weight."""
        layer = self.model[0]  # type: ignore[index]
        assert isinstance(layer, SparseLinear)
        return layer.weight

    def gradients(self) -> None:
        """Forward and backward, from which RigL takes the dense gradient."""
        self.optimizer.zero_grad()
        self.model(self.x).square().mean().backward()

    def update(self) -> None:
        """Only what the recipe does after the optimizer's step."""
        with torch.no_grad():
            self.recipe.after_step(self.recipe.step)


def dense_step(size: int) -> Callable[[], None]:
    """Return forward and backward of a dense layer of this size."""
    layer, x = nn.Linear(size, size), torch.randn(BATCH, size, requires_grad=True)

    def step() -> None:
        layer.zero_grad()
        layer(x).square().mean().backward()

    return step


def jobs(plan: Plan[Scope]) -> Iterator[Job]:
    """Two jobs per number of threads: updates beside a dense step, moves beside a copy."""
    for threads in plan.threads:
        size = plan.scope.update
        kinds = (SET_UPDATE, RIGL_UPDATE)
        keys: list[Key] = [
            (kind, f"{size}x{size}", p, "float32", threads) for kind in kinds for p in PATTERNS
        ]
        title = f"updates of masks, threads: {threads}"
        yield Job(GROUP, title, threads, keys, partial(_updates, plan, keys))
        size = plan.scope.select
        for text in MOVED:
            key: Key = (MOVE, f"{size}x{size}", text, "float32", threads)
            title = f"{MOVE} {text}, threads: {threads}"
            yield Job(GROUP, title, threads, [key], partial(_moves, plan, key))


def _updates(plan: Plan[Scope], keys: list[Key], errors: list[str]) -> list[Record]:
    size = plan.scope.update
    torch.manual_seed(SEED)
    calls: Calls = {DENSE: dense_step(size)}
    before: Calls = {}
    for topic, _, text, *_ in keys:
        one = Updated(SET if topic == SET_UPDATE else RigL, text, size)
        verify(one)
        name = f"{topic} {text}"
        calls[name], before[name] = one.update, one.gradients
    timings = time_together(plan, calls, before)
    return [
        Record.timed(
            key,
            {GOSSAMER: timings[f"{key[0]} {key[2]}"], DENSE: timings[DENSE]},
            density=parse_pattern(key[2]).count(size, size) / size**2,
        )
        for key in keys
    ]


def verify(one: Updated) -> None:
    """Check one update: the pattern holds, and what stayed kept its value.

    Raises:
        WrongResultError: nothing moved, or a value is not what it was.
        StructureError: the mask does not obey the pattern.
    """
    weight = one.weight
    one.gradients()
    old, mask = weight.to_dense().detach(), weight.mask()
    one.update()
    new = weight.mask()
    check_mask(new, weight.pattern)
    if torch.equal(mask, new) or not torch.equal(weight.to_dense(), old * (mask & new)):
        raise WrongResultError(f"{type(one.recipe).__name__} {weight.pattern}: a wrong update")


def _moves(plan: Plan[Scope], key: Key, errors: list[str]) -> list[Record]:
    size, text = plan.scope.select, key[2]
    masks = [random_structure((size, size), text, seed) for seed in (1, 2)]
    weight = SparseWeight(torch.randn(masks[0].nnz), masks[0], text)
    optimizer = torch.optim.AdamW(weight.parameters())
    weight.values.grad = torch.randn(weight.nnz)
    optimizer.step()
    optimizer.zero_grad()
    moments = [optimizer.state[weight.values][name] for name in ("exp_avg", "exp_avg_sq")]
    moved = [weight.values.detach(), weight.indices, *moments]
    copies = [tensor.clone() for tensor in moved]

    def copy() -> None:
        for target, source in zip(copies, moved, strict=True):
            target.copy_(source)

    def move() -> None:
        masks.reverse()
        weight.set_mask(masks[0], optimizer)

    old = weight.to_dense().detach()
    move()
    if not torch.equal(weight.to_dense(), old * weight.mask()):
        raise WrongResultError(f"{MOVE} {text}: a value did not follow its coordinate")
    timings = time_together(plan, {GOSSAMER: move, COPY: copy})
    return [Record.timed(key, timings, density=weight.density)]
