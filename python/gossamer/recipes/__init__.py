"""Recipes: how the masks of a network, and its loss, change over training.

recipe = gossamer.recipes.SRSTE("2:4")
model = recipe.prepare(model, exclude=["lm_head"])
optimizer = torch.optim.AdamW(recipe.parameters(model), lr=3e-4)
recipe.attach(model, optimizer, total_steps=10_000)   # then an ordinary training loop
"""

from gossamer.recipes.diagnostics import Diagnostics
from gossamer.recipes.mask_decay import MaskDecay
from gossamer.recipes.recipe import Recipe
from gossamer.recipes.srste import SRSTE
from gossamer.recipes.ste import STE
from gossamer.recipes.structure_decay import StructureDecay

__all__ = ["SRSTE", "STE", "Diagnostics", "MaskDecay", "Recipe", "StructureDecay"]
