"""Recipes under the Trainer of Lightning, with automatic or manual optimisation.

    Trainer(max_steps=1000, callbacks=[FollowRecipe(recipe)])

The callback attaches the recipe when the training begins, and saves and resumes it with the
Trainer's own checkpoints.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from gossamer.arguments import check
from gossamer.errors import CheckpointError, RecipeError
from gossamer.patterns import as_integer
from gossamer.recipes import Recipe

try:  # one library under two names
    from lightning.pytorch import Callback
except ImportError:
    from pytorch_lightning import Callback

__all__ = ["FollowRecipe"]


class FollowRecipe(Callback):
    """Attaches a recipe to an optimizer of a LightningModule, and resumes it bit for bit.

    Prepare the model before the Trainer gets it, as in the module's `__init__`. With manual
    optimisation the recipe follows `step` of its optimizer, whichever batches call it.

    Args:
        recipe: any recipe of `gossamer.recipes`.
        total_steps: steps of the optimizer in the whole training; None takes the Trainer's
            `estimated_stepping_batches`, which knows automatic optimisation alone.
        optimizer: which of the module's optimizers holds the layers of the recipe.

    Raises:
        DTypeError: an argument has another type.

    Example:
        >>> from gossamer.recipes import SRSTE
        >>> FollowRecipe(SRSTE("2:4")).recipe.pattern
        NM(n=2, m=4, vector=1)
    """

    def __init__(self, recipe: Recipe, total_steps: int | None = None, optimizer: int = 0) -> None:
        check(FollowRecipe.__init__, locals())
        self.recipe = recipe
        self.total_steps = total_steps
        self.optimizer = optimizer
        self._saved: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach the recipe; where the Trainer loads a checkpoint, resume it.

        Raises:
            CheckpointError: the checkpoint has no state of a recipe.
            RecipeError: it is of another recipe, the model was not prepared, or the number of
                steps is not known.
        """
        resumes = trainer.ckpt_path is not None
        if resumes and self._saved is None:
            raise CheckpointError(
                f"{trainer.ckpt_path} has no state of a recipe; a Trainer with FollowRecipe writes "
                "it: resume with such a checkpoint, or begin the training anew"
            )
        optimizer = self._optimizer_of(trainer)
        # The Trainer has loaded the model already, and loads the optimizer later. A recipe may
        # change the model when it is attached.
        before = copy.deepcopy(pl_module.state_dict()) if resumes else None
        self.recipe.attach(pl_module, optimizer, self._steps_of(trainer, pl_module))
        if before is not None and self._saved is not None:
            self.recipe.load_state_dict(self._saved)
            pl_module.load_state_dict(before)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Detach the recipe, so that the model can be fitted again."""
        if self.recipe.layers:
            self._saved = self.recipe.state_dict()
            self.recipe.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return what Lightning writes into its checkpoints."""
        return self.recipe.state_dict() if self.recipe.layers else dict(self._saved or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what Lightning has read until the recipe can be attached."""
        self._saved = state_dict or None

    def _optimizer_of(self, trainer: Any) -> Any:
        if not 0 <= self.optimizer < len(trainer.optimizers):
            raise RecipeError(
                f"FollowRecipe got optimizer={self.optimizer}, and the module has "
                f"{len(trainer.optimizers)}: choose one of them"
            )
        return trainer.optimizers[self.optimizer]

    def _steps_of(self, trainer: Any, pl_module: Any) -> int:
        if self.total_steps is not None:
            return as_integer(self.total_steps, "FollowRecipe got total_steps")
        if not pl_module.automatic_optimization:
            raise RecipeError(
                "with manual optimisation the Trainer does not know how often the optimizer steps: "
                "give FollowRecipe(recipe, total_steps=...)"
            )
        steps = trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise RecipeError(
                "the training has no end (max_steps and max_epochs are -1), and a recipe's "
                "schedule needs one: give max_steps, or FollowRecipe(recipe, total_steps=...)"
            )
        return int(steps)
