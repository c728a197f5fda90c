"""The text of a run: a pattern, a recipe if there is one, and what its MLPs are.

A run is written "PATTERN", "RECIPE@PATTERN" or "RECIPE", with "+ROUTER" at its end if the MLPs are
mixtures of experts, or "+activations" if their activations are sparse: "dense", "2:4:v4",
"rigl@90%", "dense+topk", "2:4:v4+activations". A pattern contains neither "@" nor "+", so the parts
cannot be confused.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from gossamer.arguments import check
from gossamer.errors import PatternError, RecipeError
from gossamer.patterns import parse_pattern
from gossamer.recipes import Recipe
from gossamer.recipes.base.registry import RECIPES, entry, make
from gossamer.train.model import ROUTERS

DENSE = "dense"
AT = "@"
ACTIVATIONS = "activations"


@dataclass(frozen=True)
class RunSpec:
    """The pattern, recipe and MLPs of one run.

    Args:
        pattern: `"dense"`, or the text of a pattern.
        recipe: name of the recipe that changes the mask; None keeps the mask fixed.
        router: name of the experts' router; None is one MLP per block.
        activations: whether the MLPs compute live activations only; the pattern then is that of
            the attention.

    Example:
        >>> RunSpec.parse(" RigL @ 90 % + topk")
        RunSpec(pattern='90%', recipe='rigl', router='topk', activations=False)
    """

    pattern: str
    recipe: str | None = None
    router: str | None = None
    activations: bool = False

    @classmethod
    def parse(cls, text: str) -> RunSpec:
        """Read the text of a run.

        Args:
            text: text such as `"dense"`, `"2:4:v4"`, `"rigl@90%"` or `"90%+sinkhorn"`; a recipe
                alone uses its default pattern.

        Raises:
            PatternError: the pattern or the router is unknown.
            RecipeError: the recipe is unknown.
        """
        check(RunSpec.parse, locals())
        body, plus, mlps = (part.strip() for part in text.partition("+"))
        if plus and mlps not in (*ROUTERS, ACTIVATIONS):
            raise PatternError(
                f"train got the run {text!r:.80}; after + it needs a router: "
                f"write {' or '.join(ROUTERS)}; or {ACTIVATIONS}"
            )
        recipe, pattern = _recipe_and_pattern(body)
        if mlps == ACTIVATIONS:
            return cls(pattern, recipe, activations=True)
        return cls(pattern, recipe, mlps if plus else None)

    def __str__(self) -> str:
        recipe = "" if self.recipe is None else f"{self.recipe}{AT}"
        mlps = ACTIVATIONS if self.activations else self.router
        return f"{recipe}{self.pattern}" + ("" if mlps is None else f"+{mlps}")

    def make_recipe(self, seed: int, options: Iterable[str] = ()) -> Recipe | None:
        """Make the recipe of this run.

        Args:
            seed: seed of the recipe's random numbers, if it draws any.
            options: hyper-parameters as `"name=value"`.

        Returns:
            The recipe, or None if the run has none.

        Raises:
            GossamerError: the recipe does not know an option, or refuses its value.

        Example:
            >>> RunSpec.parse("srste@1:4").make_recipe(seed=0).pattern.density
            0.25
        """
        if self.recipe is None:
            return None
        given = parse_options(options)
        if "seed" not in given and any(f.name == "seed" for f in fields(entry(self.recipe).load())):
            given["seed"] = seed
        return make(self.recipe, self.pattern, **given)


def _recipe_and_pattern(text: str) -> tuple[str | None, str]:
    """Split "RECIPE@PATTERN", "RECIPE" or "PATTERN"; both parts in their canonical form."""
    if text == DENSE:
        return None, DENSE
    name, at, pattern = text.partition(AT)
    name = name.strip().lower().replace("_", "-")
    try:
        if not at and name not in RECIPES:
            return None, str(parse_pattern(text))
        return name, str(make(name, pattern.strip() if at else None).pattern)
    except PatternError as error:
        raise PatternError(f'{error}; or "dense" for the dense network') from error


def parse_options(options: Iterable[str]) -> dict[str, Any]:
    """Read hyper-parameters from texts `"name=value"`.

    Args:
        options: the texts; a value is a number, True, False or None, and text otherwise.

    Returns:
        The values by name.

    Raises:
        RecipeError: a text has another form, or a name is given twice.

    Example:
        >>> parse_options(["adapter_rank=16", "method=cubic"])
        {'adapter_rank': 16, 'method': 'cubic'}
    """
    found: dict[str, Any] = {}
    for text in options:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier() or name in found:
            raise RecipeError(
                f"got the recipe option {text!r:.80}; write each once, as adapter_rank=16"
            )
        try:
            found[name] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            found[name] = value.strip()
    return found
