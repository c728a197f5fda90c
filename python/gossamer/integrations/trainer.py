"""Recipes under the Trainer of transformers.

    Trainer(model, arguments, train_dataset=data, callbacks=[FollowRecipe(recipe)])

The callback attaches the recipe when the training begins, and saves and resumes it with the
Trainer's own checkpoints.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gossamer.arguments import check
from gossamer.errors import CheckpointError
from gossamer.optim.steps import unwrapped
from gossamer.recipes import Recipe

__all__ = ["FILE", "FollowRecipe"]

FILE = "recipe.pt"


class FollowRecipe(TrainerCallback):
    """Attaches a recipe to a Trainer's optimizer, and resumes it bit for bit.

    Prepare the model before the Trainer gets it: `model = recipe.prepare(model)`.

    Args:
        recipe: any recipe of `gossamer.recipes`.
        resume_from: the checkpoint's folder that `train(resume_from_checkpoint=...)` gets; None
            looks into the output folder for the step that the training goes on with.

    Raises:
        DTypeError: an argument has another type.

    Example:
        >>> from gossamer.recipes import SRSTE
        >>> FollowRecipe(SRSTE("2:4")).recipe.pattern
        NM(n=2, m=4, vector=1)
    """

    def __init__(self, recipe: Recipe, resume_from: str | Path | None = None) -> None:
        check(FollowRecipe.__init__, locals())
        self.recipe = recipe
        self.resume_from = resume_from

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Attach the recipe; where the Trainer has loaded a checkpoint, resume it.

        Raises:
            CheckpointError: the checkpoint has no state of a recipe.
            RecipeError: it is of another recipe, or the model was not prepared.
        """
        if not state.global_step:
            self.recipe.attach(model, optimizer, state.max_steps)
            return
        folder = self.resume_from or Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        path = Path(folder, FILE)
        if not path.is_file():
            raise CheckpointError(
                f"there is no {path}; a Trainer with FollowRecipe writes it: give the folder as "
                "FollowRecipe(recipe, resume_from=...), or begin the training anew"
            )
        saved = torch.load(path, weights_only=True)
        # The Trainer has loaded model and optimizer already, and a recipe may change both when it
        # is attached.
        inner = unwrapped(optimizer)
        before = copy.deepcopy((model.state_dict(), inner.state_dict()))
        self.recipe.attach(model, optimizer, state.max_steps)
        self.recipe.load_state_dict(saved)
        model.load_state_dict(before[0])
        inner.load_state_dict(before[1])

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the recipe's state into the checkpoint that the Trainer has just written."""
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(self.recipe.state_dict(), folder / FILE)
