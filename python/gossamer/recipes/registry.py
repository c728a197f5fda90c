"""The recipes by the names that the command line knows.

A name stands for a class and what sets it apart from others of that class. Classes are imported
when they are asked for: one that fails to import takes nobody else down.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from gossamer.errors import GossamerError, RecipeError
from gossamer.patterns import Pattern
from gossamer.recipes.recipe import Recipe

# Patterns of one sparsity, in percent, for those that keep n of every m and for those that do not.
# 1:10 is the one N:M of 90 % with the smallest group.
GROUPS = {50: "2:4", 75: "1:4", 90: "1:10"}
ANYWHERE = {50: "50%", 75: "75%", 90: "90%"}
# Groups that are halved, or grown to eight times their size, are powers of two: 12.5 % is left.
HALVED = {50: "2:4", 75: "1:4", 90: "1:8"}


@dataclass(frozen=True)
class Entry:
    """A recipe by name: call it to make one.

    Args:
        module: of the package `gossamer.recipes`.
        kind: name of the class.
        patterns: the pattern to take at a sparsity of 50, 75 and 90 percent.
        options: what the name stands for, beside the class.
        static: whether the mask never moves.
    """

    module: str
    kind: str
    patterns: Mapping[int, str] = field(default_factory=lambda: GROUPS)
    options: Mapping[str, Any] = field(default_factory=dict)
    static: bool = False

    def load(self) -> type[Recipe]:
        """The class.

        Raises:
            RecipeError: it cannot be imported.
        """
        try:
            found = importlib.import_module(f"gossamer.recipes.{self.module}")
            kind: type[Recipe] = getattr(found, self.kind)
        except (ImportError, AttributeError) as error:
            raise RecipeError(
                f"the recipe {self.kind} cannot be imported ({error}); install Gossamer anew"
            ) from error
        return kind

    def __call__(self, pattern: str | Pattern | None = None, **options: Any) -> Recipe:
        """A recipe of this kind.

        Args:
            pattern: which entries may live; None takes the one of 50 percent.
            options: hyper-parameters of the class; stronger than those of the name.

        Raises:
            RecipeError: an option that the class has not.
            GossamerError: the class refuses a value.
        """
        kind = self.load()
        free = [f.name for f in fields(kind) if f.init and f.name != "pattern"]
        for name in options:
            if name not in free:
                raise RecipeError(
                    f"{kind.__name__} got the option {name!r:.80}; it has "
                    f"{', '.join(free) or 'none'}: name one of these"
                )
        pattern = self.patterns[50] if pattern is None else pattern
        return kind(pattern, **{**self.options, **options})


RECIPES: dict[str, Entry] = {
    "slope": Entry("slope", "SLoPe", static=True),
    "slope-adapters": Entry("slope", "SLoPe", options={"adapter_rank": 8}, static=True),
    "ste": Entry("ste", "STE"),
    "srste": Entry("srste", "SRSTE"),
    "mask-decay-linear": Entry("mask_decay", "MaskDecay", options={"kind": "linear"}),
    "mask-decay-exponential": Entry("mask_decay", "MaskDecay", options={"kind": "exponential"}),
    "structure-decay-stepwise": Entry(
        "structure_decay", "StructureDecay", HALVED, {"kind": "stepwise"}
    ),
    "structure-decay-geometric": Entry(
        "structure_decay", "StructureDecay", HALVED, {"kind": "geometric", "windows": 3}
    ),
    "fst": Entry("fst", "FST"),  # dense for the last sixth, as published
    "fst-sparse": Entry("fst", "FST", options={"dense_finetune": 0.0}),
    "sste": Entry("sste", "SSTE"),
    "bimask": Entry("bimask", "BiMask"),
    "static": Entry("static", "Static", ANYWHERE, static=True),
    "static-erk": Entry("static", "Static", ANYWHERE, {"distribution": "erk"}, static=True),
    "set": Entry("set", "SET", ANYWHERE),
    "rigl": Entry("rigl", "RigL", ANYWHERE),
    "gmp": Entry("gmp", "GMP", ANYWHERE),
    "imp": Entry("imp", "IMP", ANYWHERE),
    "dsl": Entry("dsl", "DSL", ANYWHERE),
    "autosparse": Entry("autosparse", "AutoSparse", ANYWHERE),
    "hypersparse": Entry("hypersparse", "HyperSparse", ANYWHERE),
    "issp": Entry("issp", "ISSP", ANYWHERE),
    "lobster": Entry("lobster", "Lobster", ANYWHERE),
    "top-l0": Entry("top_l0", "TopL0", ANYWHERE),
    "sparse-ift-wide": Entry("sparse_ift", "SparseIFT", ANYWHERE, {"kind": "wide"}),
    "sparse-ift-parallel": Entry("sparse_ift", "SparseIFT", ANYWHERE, {"kind": "parallel"}),
    "sparse-ift-factorized": Entry("sparse_ift", "SparseIFT", ANYWHERE, {"kind": "factorized"}),
    "sparse-ift-doped": Entry("sparse_ift", "SparseIFT", ANYWHERE, {"kind": "doped"}),
}


def entry(name: str) -> Entry:
    """The recipe of a name, in any case and with "_" for "-".

    Raises:
        RecipeError: there is none; the message lists them.
    """
    known = name.strip().lower().replace("_", "-")
    if known not in RECIPES:
        raise RecipeError(f"there is no recipe {name!r:.80}; choose one of {', '.join(RECIPES)}")
    return RECIPES[known]


def make(name: str, pattern: str | Pattern | None = None, **options: Any) -> Recipe:
    """A recipe by its name on the command line.

    Args:
        name: such as "slope" or "mask-decay-linear".
        pattern: which entries may live; None takes the recipe's own for a half.
        options: hyper-parameters of its class.

    Returns:
        The recipe.

    Raises:
        RecipeError: no such name or option.
        GossamerError: the class refuses a value.

    Example:
        >>> make("srste", "1:4").pattern.density
        0.25
    """
    try:
        return entry(name)(pattern, **options)
    except GossamerError as error:
        raise type(error)(f"recipe {name}: {error}") from None


def importable() -> list[str]:
    """The names whose class is there."""
    found = []
    for name, one in RECIPES.items():
        try:
            one.load()
        except RecipeError:
            continue
        found.append(name)
    return found
