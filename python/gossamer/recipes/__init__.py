"""Recipes: how the masks of a network, and its loss, change over training.

recipe = gossamer.recipes.SRSTE("2:4")
model = recipe.prepare(model, exclude=["lm_head"])
optimizer = torch.optim.AdamW(recipe.parameters(model), lr=3e-4)
recipe.attach(model, optimizer, total_steps=10_000)   # then an ordinary training loop
"""

from gossamer.recipes.recipe import Recipe

__all__ = ["Recipe"]
