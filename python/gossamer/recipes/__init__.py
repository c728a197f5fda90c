"""Recipes: how the masks of a network, and its loss, change over training.

recipe = gossamer.recipes.SRSTE("2:4")
model = recipe.prepare(model, exclude=["lm_head"])
optimizer = torch.optim.AdamW(recipe.parameters(model), lr=3e-4)
recipe.attach(model, optimizer, total_steps=10_000)  # then an ordinary training loop

Every class of the registry is a name of this package, imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from gossamer.recipes.base.recipe import Recipe
from gossamer.recipes.base.registry import RECIPES, Entry, entry, importable, make, register

if TYPE_CHECKING:  # for type checkers; a recipe is found without a line here
    from gossamer.recipes.activation_l1 import ActivationL1 as ActivationL1
    from gossamer.recipes.autosparse import AutoSparse as AutoSparse
    from gossamer.recipes.bimask import BiMask as BiMask
    from gossamer.recipes.cht import CHT as CHT
    from gossamer.recipes.constraints import DisparateImpact as DisparateImpact
    from gossamer.recipes.constraints import GroupAccuracy as GroupAccuracy
    from gossamer.recipes.constraints import group_accuracy as group_accuracy
    from gossamer.recipes.diagnostics import Diagnostics as Diagnostics
    from gossamer.recipes.dsl import DSL as DSL
    from gossamer.recipes.edge_popup import EdgePopup as EdgePopup
    from gossamer.recipes.fst import FST as FST
    from gossamer.recipes.gmp import GMP as GMP
    from gossamer.recipes.hebbian import HebbianGrowth as HebbianGrowth
    from gossamer.recipes.hypersparse import HyperSparse as HyperSparse
    from gossamer.recipes.imp import IMP as IMP
    from gossamer.recipes.issp import ISSP as ISSP
    from gossamer.recipes.lobster import Lobster as Lobster
    from gossamer.recipes.mask_decay import MaskDecay as MaskDecay
    from gossamer.recipes.pixelated_butterfly import PixelatedButterfly as PixelatedButterfly
    from gossamer.recipes.prune_groups import PruneGroups as PruneGroups
    from gossamer.recipes.prune_late import PruneLate as PruneLate
    from gossamer.recipes.rigl import RigL as RigL
    from gossamer.recipes.set import SET as SET
    from gossamer.recipes.slope import SLoPe as SLoPe
    from gossamer.recipes.sparse_ift import SparseIFT as SparseIFT
    from gossamer.recipes.srste import SRSTE as SRSTE
    from gossamer.recipes.sste import SSTE as SSTE
    from gossamer.recipes.static import Static as Static
    from gossamer.recipes.ste import STE as STE
    from gossamer.recipes.structure_decay import StructureDecay as StructureDecay
    from gossamer.recipes.top_l0 import TopL0 as TopL0

_MODULES = {one.kind: one.module for one in RECIPES.values()} | {
    "ActivationL1": ".activation_l1",
    "Diagnostics": ".diagnostics",
    "PixelatedButterfly": ".pixelated_butterfly",
    "DisparateImpact": ".constraints",
    "GroupAccuracy": ".constraints",
    "group_accuracy": ".constraints",
    "PruneGroups": ".prune_groups",
    "PruneLate": ".prune_late",
}

__all__ = [
    "RECIPES",
    "Entry",
    "Recipe",
    "entry",
    "importable",
    "make",
    "register",
    *sorted(_MODULES),
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'gossamer.recipes' has no attribute {name!r}")
    value: object = getattr(import_module(_MODULES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
