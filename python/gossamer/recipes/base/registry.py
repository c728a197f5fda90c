"""The registry: recipes by the names that the command line knows.

A name stands for a class and some of its options. Classes are imported on first use, so one
failing import does not affect the others. A new recipe is one file and one line in `RECIPES`; a
recipe outside this package calls `register`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from gossamer.arguments import check
from gossamer.deprecations import deprecated
from gossamer.errors import GossamerError, RecipeError
from gossamer.patterns import Pattern
from gossamer.recipes.base.identity import name_class

if TYPE_CHECKING:
    from gossamer.recipes.base.recipe import Recipe

__all__ = ["RECIPES", "Entry", "entry", "importable", "make", "register"]

PACKAGE = "gossamer.recipes"

# Patterns by sparsity in percent, N:M and others. 1:10 is the N:M of 90 % with the smallest group.
GROUPS = {50: "2:4", 75: "1:4", 90: "1:10"}
ANYWHERE = {50: "50%", 75: "75%", 90: "90%"}
# Where groups are halved or grow to eight times their size, m is a power of two: 1:8 is 87.5 %.
HALVED = {50: "2:4", 75: "1:4", 90: "1:8"}


@dataclass(frozen=True)
class Entry:
    """What a name stands for; call it to make a recipe.

    Args:
        module: import path of the module; one that starts with a dot is in `gossamer.recipes`.
        kind: name of the class.
        patterns: the pattern for a sparsity of 50, 75 and 90 percent.
        options: options of the class that the name sets.
        static: whether the mask never moves.
    """

    module: str
    kind: str
    patterns: Mapping[int, str] = field(default_factory=lambda: GROUPS)
    options: Mapping[str, Any] = field(default_factory=dict)
    static: bool = False

    @property
    def path(self) -> str:
        """The import path of the class, "module:class"."""
        module = PACKAGE + self.module if self.module.startswith(".") else self.module
        return f"{module}:{self.kind}"

    def load(self) -> type[Recipe]:
        """Import and return the class.

        Raises:
            RecipeError: the class cannot be imported.
        """
        try:
            found = importlib.import_module(self.module, PACKAGE)
            kind: type[Recipe] = getattr(found, self.kind)
        except (ImportError, AttributeError) as error:
            raise RecipeError(
                f"the recipe {self.kind} cannot be imported ({error}); reinstall the package "
                "that has it"
            ) from error
        return kind

    def __call__(self, pattern: str | Pattern | None = None, **options: Any) -> Recipe:
        """Make a recipe.

        Args:
            pattern: which entries are kept; None takes the pattern for 50 percent.
            options: fields of the class; they override the name's options. A former name of a field
                is still taken, with a warning.

        Raises:
            RecipeError: the class does not have such an option.
            GossamerError: the class refuses a value.
        """
        kind = self.load()
        free = [f.name for f in fields(kind) if f.init and f.name != "pattern"]
        given, options = options, {kind.renamed.get(k, k): v for k, v in options.items()}
        if len(options) < len(given):
            raise RecipeError(
                f"{kind.__name__} got an option by its present and its former name "
                f"({', '.join(given)}); give it once"
            )
        if former := [name for name in given if name in kind.renamed]:
            old, new = (
                ", ".join(f"{name}=..." for name in names)
                for names in (former, [kind.renamed[name] for name in former])
            )
            deprecated(f"{kind.__name__}({old})", new, removed="0.3", stacklevel=3)
        for name in options:
            if name not in free:
                raise RecipeError(
                    f"{kind.__name__} got the option {name!r:.80}; it has "
                    f"{', '.join(free) or 'none'}: name one of these"
                )
        pattern = self.patterns[50] if pattern is None else pattern
        return kind(pattern, **{**self.options, **options})


RECIPES: dict[str, Entry] = {
    "slope": Entry(".slope", "SLoPe", static=True),
    "slope-adapters": Entry(".slope", "SLoPe", options={"adapter_rank": 8}, static=True),
    "ste": Entry(".ste", "STE"),
    # --8<-- [start:entry]
    "srste": Entry(".srste", "SRSTE"),
    # --8<-- [end:entry]
    "mask-decay-linear": Entry(".mask_decay", "MaskDecay", options={"method": "linear"}),
    "mask-decay-exponential": Entry(".mask_decay", "MaskDecay", options={"method": "exponential"}),
    "structure-decay-stepwise": Entry(
        ".structure_decay", "StructureDecay", HALVED, {"method": "stepwise"}
    ),
    "structure-decay-geometric": Entry(
        ".structure_decay", "StructureDecay", HALVED, {"method": "geometric", "windows": 3}
    ),
    "fst": Entry(".fst", "FST"),  # dense for the last sixth, as published
    "fst-sparse": Entry(".fst", "FST", options={"dense_finetune_share": 0.0}),
    "sste": Entry(".sste", "SSTE"),
    "bimask": Entry(".bimask", "BiMask"),
    "static": Entry(".static", "Static", ANYWHERE, static=True),
    "static-erk": Entry(".static", "Static", ANYWHERE, {"distribution": "erk"}, static=True),
    "set": Entry(".set", "SET", ANYWHERE),
    "rigl": Entry(".rigl", "RigL", ANYWHERE),
    "cht": Entry(".cht", "CHT", ANYWHERE),
    "cht-soft": Entry(".cht", "CHT", ANYWHERE, {"score": "CH2-L3n", "soft": True}),
    "hebbian": Entry(".hebbian", "HebbianGrowth", ANYWHERE),
    "gmp": Entry(".gmp", "GMP", ANYWHERE),
    "gmp-sparse": Entry(".gmp", "GMP", ANYWHERE, {"dense_weight": False}),
    "imp": Entry(".imp", "IMP", ANYWHERE),
    "edge-popup": Entry(".edge_popup", "EdgePopup", ANYWHERE),
    "dsl": Entry(".dsl", "DSL", ANYWHERE),
    "autosparse": Entry(".autosparse", "AutoSparse", ANYWHERE),
    "hypersparse": Entry(".hypersparse", "HyperSparse", ANYWHERE),
    "issp": Entry(".issp", "ISSP", ANYWHERE),
    "lobster": Entry(".lobster", "Lobster", ANYWHERE),
    "top-l0": Entry(".top_l0", "TopL0", ANYWHERE),
    "sparse-ift-wide": Entry(".sparse_ift", "SparseIFT", ANYWHERE, {"method": "wide"}),
    "sparse-ift-parallel": Entry(".sparse_ift", "SparseIFT", ANYWHERE, {"method": "parallel"}),
    "sparse-ift-factorized": Entry(".sparse_ift", "SparseIFT", ANYWHERE, {"method": "factorized"}),
    "sparse-ift-doped": Entry(".sparse_ift", "SparseIFT", ANYWHERE, {"method": "doped"}),
}
for _name, _entry in RECIPES.items():
    name_class(_entry.path, _name)


def entry(name: str) -> Entry:
    """Return the entry of a name, in any case and with "_" for "-".

    Raises:
        RecipeError: the name is unknown; the message lists the known ones.
    """
    check(entry, locals())
    known = _normalised(name)
    if known not in RECIPES:
        raise RecipeError(f"there is no recipe {name!r:.80}; choose one of {', '.join(RECIPES)}")
    return RECIPES[known]


def make(name: str, pattern: str | Pattern | None = None, **options: Any) -> Recipe:
    """Make a recipe by its name on the command line.

    Args:
        name: a name such as "slope" or "mask-decay-linear".
        pattern: which entries are kept; None takes the recipe's pattern for 50 percent.
        options: fields of its class.

    Returns:
        The recipe.

    Raises:
        RecipeError: an unknown name or option.
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
    """Return the names whose class can be imported."""
    found = []
    for name, one in RECIPES.items():
        try:
            one.load()
        except RecipeError:
            continue
        found.append(name)
    return found


def register(name: str, given: Entry) -> None:
    """Add a recipe that is defined outside this package.

    Args:
        name: the name for `make` and the command line.
        given: where the class is.

    Raises:
        RecipeError: the name is taken by another recipe.

    Example:
        >>> register("srste-strong", Entry(".srste", "SRSTE", options={"gradient_decay": 1e-2}))
        >>> make("srste-strong").gradient_decay
        0.01
        >>> del RECIPES["srste-strong"]
    """
    name = _normalised(name)
    if RECIPES.get(name, given) != given:
        raise RecipeError(
            f"register got the name {name!r:.80}, which stands for {RECIPES[name].kind}; choose "
            "another name"
        )
    RECIPES[name] = given
    name_class(given.path, name)


def _normalised(name: str) -> str:
    return name.strip().lower().replace("_", "-")
