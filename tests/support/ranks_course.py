"""Trainings of a tiny sparse GPT: under FSDP2, or by one process that accumulates micro-batches."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from gossamer.recipes import SET, RigL, Static
from gossamer.train.model import GPT, GPTConfig

STEPS = 7
SIZES = GPTConfig(vocabulary=50, context=8, width=32, depth=2, heads=2)
RECIPES = {"static": Static, "set": SET, "rigl": RigL}


class Course:
    """One training: model, optimizer and recipe, whose masks move after steps 2, 4 and 6.

    Args:
        recipe: name of a recipe.
        sharded: whether the model is under `fully_shard`.
        pattern: pattern of the weights.
    """

    def __init__(self, recipe: str, sharded: bool, pattern: str = "2:4:v4") -> None:
        torch.manual_seed(0)
        self.model = GPT(SIZES)
        options = {} if recipe == "static" else {"every": 2, "end_share": 1.0}
        self.recipe = RECIPES[recipe](pattern, **options)
        self.recipe.prepare(self.model, rescale=True)
        if sharded:
            for block in self.model.blocks:
                fully_shard(block)
            fully_shard(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.recipe.attach(self.model, self.optimizer, STEPS + 1)

    def step(self, batches: list[Tensor]) -> None:
        """Take one step, on the mean over micro-batches."""
        self.optimizer.zero_grad()
        for batch in batches:
            logits = self.model(batch[:, :-1]).flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, batch[:, 1:].flatten())
            (loss / len(batches)).backward()
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """Return everything, for a checkpoint."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "recipe": self.recipe.state_dict()}

    def save(self, folder: str) -> None:
        dcp.save(self.state(), checkpoint_id=folder)

    def load(self, folder: str) -> None:
        state = self.state()
        dcp.load(state, checkpoint_id=folder)
        self.recipe.load_state_dict(state["recipe"])
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )

    def whole(self) -> dict[str, Tensor]:
        """Return all values, structures and moments, gathered."""
        state = self.state()
        found = dict(state["model"])
        for name, moments in state["optimizer"]["state"].items():
            found |= {f"{name} {key}": tensor for key, tensor in moments.items()}
        return {
            name: (t.full_tensor() if hasattr(t, "full_tensor") else t).clone()
            for name, t in found.items()
        }


def micro_batch(step: int, rank: int) -> Tensor:
    """Return the tokens of one process in one step."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randint(50, (2, 9), generator=generator)


def alone(recipe: str, ranks: int, pattern: str = "2:4:v4", steps: int = STEPS) -> Course:
    """Train in one process, which accumulates the micro-batches of `ranks`."""
    course = Course(recipe, sharded=False, pattern=pattern)
    for t in range(steps):
        course.step([micro_batch(t, rank) for rank in range(ranks)])
    return course


def sharded(
    rank: int, recipe: str, folder: str, pattern: str = "2:4:v4", kill_at: int = -1
) -> dict[str, Tensor]:
    """Train under FSDP2; continue from a checkpoint in the folder, and save one at step 3.

    Args:
        kill_at: the step in which the process kills itself, between backward and the end.
    """
    course = Course(recipe, sharded=True, pattern=pattern)
    first = 0
    if Path(folder, ".metadata").exists():
        course.load(folder)
        first = course.recipe.step
    for t in range(first, STEPS):
        if t == 3 and not first:
            course.save(folder)
        course.step([micro_batch(t, rank)])
        if t == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    return course.whole()


def restored(rank: int, recipe: str, folder: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Load a checkpoint; return everything, and again after the remaining steps of two ranks."""
    course = Course(recipe, sharded=True)
    course.load(folder)
    before = course.whole()
    world = dist.get_world_size()
    for t in range(course.recipe.step, STEPS):
        # The same six windows, however many processes share them.
        batch = torch.cat([micro_batch(t, 0), micro_batch(t, 1)])
        share = batch.repeat(3, 1).chunk(world)[rank]
        course.step([share])
    return before, course.whole()


def masks_moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    """Return whether any structure differs."""
    return any(not torch.equal(before[n], after[n]) for n in before if n.endswith(".indices"))


def bits(found: dict[str, Tensor]) -> dict[str, bytes]:
    """Return the bytes of each tensor."""
    return {n: t.detach().contiguous().numpy().tobytes() for n, t in found.items()}
