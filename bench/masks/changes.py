"""Changes of a mask beside one step of the dense layer, and beside a copy of what moves.

An update drops the smallest entries, grows as many, and moves values and both moments of AdamW. The
dense step is forward and backward of `nn.Linear`, whose time does not depend on the mask. What
updates add to a training is measured over whole cycles of steps, beside the same steps of Static.
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
from gossamer.recipes import CHT, SET, HebbianGrowth, RigL, Static

GROUP = "changing"
SET_UPDATE, RIGL_UPDATE, MOVE = "SET update", "RigL update", "set_mask"
HEBBIAN_UPDATE, CHTS_UPDATE, CHT_UPDATE = "HebbianGrowth update", "CHTs update", "CHT update"
DENSE, COPY, STATIC = "dense step", "copy", "Static"
PATTERNS = ("2:4", "2:4:v4", "90%", "90%:v4")
MOVED = ("90%", "90%:v4")
CYCLED = ("2:4", "90%")
BATCH = 512
CHTS = partial(CHT, score="CH2-L3n", soft=True)
UPDATES: dict[str, tuple[Callable[..., SET], tuple[str, ...]]] = {
    SET_UPDATE: (SET, PATTERNS),
    RIGL_UPDATE: (RigL, PATTERNS),
    HEBBIAN_UPDATE: (HebbianGrowth, ("90%",)),
    CHTS_UPDATE: (CHTS, ("90%", "99%")),
    CHT_UPDATE: (CHT, ("99%",)),
}
# Steps between two updates where their mean is measured, one of which has an update.
EVERY = 10
SET_STEPS, RIGL_STEPS = f"SET, mean of {EVERY} steps", f"RigL, mean of {EVERY} steps"
# Of the values, so that what has grown is no longer 0 when the next update looks for the smallest.
NOISE = 1e-3
BARS = (
    Bar(SET_UPDATE, (DENSE,), 2.0, words="at most half a dense step"),
    Bar(RIGL_UPDATE, (DENSE,), 0.5, words="at most two dense steps"),
    Bar(HEBBIAN_UPDATE, (DENSE,), 0.5, words="at most two dense steps"),
    Bar(CHTS_UPDATE, (DENSE,), 0.5, words="at most two dense steps"),
    Bar(CHT_UPDATE, (DENSE,), 0.2, words="at most five dense steps"),
    Bar(MOVE, (COPY,), 0.2, words="at most five copies of values, ids and moments"),
    Bar(SET_STEPS, (STATIC,), 1 / 1.2, words="at most 1.2 times Static's"),
    Bar(RIGL_STEPS, (STATIC,), 1 / 1.5, words="at most 1.5 times Static's"),
)


class Trained:
    """A layer that trains under a recipe.

    Args:
        recipe: prepares and follows it.
        size: rows and columns of the weight.
    """

    def __init__(self, recipe: Static, size: int) -> None:
        self.recipe = recipe
        self.model = recipe.prepare(nn.Sequential(nn.Linear(size, size)))
        self.optimizer = torch.optim.AdamW(recipe.parameters(self.model), lr=1e-4)
        # So many that the share of entries that an update moves stays what it is at first.
        recipe.attach(self.model, self.optimizer, total_steps=100_000)
        self.x = torch.randn(BATCH, size)

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

    def steps(self) -> None:
        """Train as many steps as there are between two updates."""
        for _ in range(EVERY):
            self.gradients()
            self.optimizer.step()


class Updated(Trained):
    """A layer whose mask moves, always one update further.

    Args:
        kind: the recipe.
        text: of the pattern.
        size: rows and columns of the weight.
    """

    def __init__(self, kind: Callable[..., SET], text: str, size: int) -> None:
        super().__init__(kind(text, every=1, distribution="uniform"), size)
        for _ in range(2):
            self.gradients()
            self.optimizer.step()

    def prepare(self) -> None:
        """What comes before an update: another step, with other values and their gradient."""
        self.recipe.step += 1
        with torch.no_grad():
            self.weight.values.add_(torch.randn(self.weight.nnz), alpha=NOISE)
        self.gradients()
        with torch.no_grad():
            self.recipe.before_step(self.recipe.step)

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
    """Per number of threads: updates beside a dense step, cycles of steps, moves beside a copy."""
    for threads in plan.threads:
        size = plan.scope.update
        keys: list[Key] = [
            (kind, f"{size}x{size}", p, "float32", threads)
            for kind, (_, patterns) in UPDATES.items()
            for p in patterns
        ]
        title = f"updates of masks, threads: {threads}"
        yield Job(GROUP, title, threads, keys, partial(_updates, plan, keys))
        for text in CYCLED:
            keys = [
                (kind, f"{size}x{size}", text, "float32", threads)
                for kind in (SET_STEPS, RIGL_STEPS)
            ]
            title = f"steps with updates {text}, threads: {threads}"
            yield Job(GROUP, title, threads, keys, partial(_cycles, plan, keys))
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
        one = Updated(UPDATES[topic][0], text, size)
        verify(one)
        name = f"{topic} {text}"
        calls[name], before[name] = one.update, one.prepare
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
    """Check two updates: each moves the mask, which obeys the pattern; what stays keeps its value.

    Raises:
        WrongResultError: nothing moved, or a value is not what it was.
        StructureError: the mask does not obey the pattern.
    """
    weight = one.weight
    for _ in range(2):
        one.prepare()
        old, mask = weight.to_dense().detach(), weight.mask()
        one.update()
        new = weight.mask()
        check_mask(new, weight.pattern)
        if torch.equal(mask, new) or not torch.equal(weight.to_dense(), old * (mask & new)):
            raise WrongResultError(f"{type(one.recipe).__name__} {weight.pattern}: a wrong update")


def _cycles(plan: Plan[Scope], keys: list[Key], errors: list[str]) -> list[Record]:
    size, text = plan.scope.update, keys[0][2]
    torch.manual_seed(SEED)
    recipes = {
        STATIC: Static(text, distribution="uniform"),
        SET_STEPS: SET(text, every=EVERY, distribution="uniform"),
        RIGL_STEPS: RigL(text, every=EVERY, distribution="uniform"),
    }
    layers = {name: Trained(recipe, size) for name, recipe in recipes.items()}
    masks = {}
    # The first update is in the second cycle: none comes at step 0.
    for name, layer in layers.items():
        layer.steps()
        masks[name] = layer.weight.mask()
        layer.steps()
        if torch.equal(masks[name], layer.weight.mask()) != (name == STATIC):
            raise WrongResultError(f"{name} {text}: a mask moved that is fixed, or did not move")
    timings = time_together(plan, {name: layer.steps for name, layer in layers.items()})
    return [
        Record.timed(
            key,
            {GOSSAMER: timings[key[0]], STATIC: timings[STATIC]},
            density=parse_pattern(text).count(size, size) / size**2,
        )
        for key in keys
    ]


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
