"""Recipes: how the masks of a network, and its loss, change over training.

recipe = gossamer.recipes.SRSTE("2:4")
model = recipe.prepare(model, exclude=["lm_head"])
optimizer = torch.optim.AdamW(recipe.parameters(model), lr=3e-4)
recipe.attach(model, optimizer, total_steps=10_000)  # then an ordinary training loop
"""

from gossamer.recipes.autosparse import AutoSparse
from gossamer.recipes.bimask import BiMask
from gossamer.recipes.diagnostics import Diagnostics
from gossamer.recipes.dsl import DSL
from gossamer.recipes.fst import FST
from gossamer.recipes.gmp import GMP
from gossamer.recipes.hypersparse import HyperSparse
from gossamer.recipes.imp import IMP
from gossamer.recipes.issp import ISSP
from gossamer.recipes.lobster import Lobster
from gossamer.recipes.mask_decay import MaskDecay
from gossamer.recipes.recipe import Recipe
from gossamer.recipes.rigl import RigL
from gossamer.recipes.set import SET
from gossamer.recipes.slope import SLoPe
from gossamer.recipes.sparse_ift import SparseIFT
from gossamer.recipes.srste import SRSTE
from gossamer.recipes.sste import SSTE
from gossamer.recipes.static import Static
from gossamer.recipes.ste import STE
from gossamer.recipes.structure_decay import StructureDecay
from gossamer.recipes.top_l0 import TopL0

__all__ = [
    "DSL",
    "FST",
    "GMP",
    "IMP",
    "ISSP",
    "SET",
    "SRSTE",
    "SSTE",
    "STE",
    "AutoSparse",
    "BiMask",
    "Diagnostics",
    "HyperSparse",
    "Lobster",
    "MaskDecay",
    "Recipe",
    "RigL",
    "SLoPe",
    "SparseIFT",
    "Static",
    "StructureDecay",
    "TopL0",
]
