"""Training with a recipe: from the text of a run to a prepared model, its groups and its numbers.

A run "slope@2:4:v4" trains by the recipe "slope" with the pattern 2:4:v4; "slope" alone takes the
recipe's own pattern. Patterns are written without "@", so no run can be mistaken for another.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from gossamer.backend import Layout, Structure, validate
from gossamer.errors import RecipeError
from gossamer.nn import SparseLinear, summary
from gossamer.nn.layers.masked import MaskedLinear
from gossamer.recipes import Diagnostics, Recipe
from gossamer.recipes.base.registry import RECIPES, entry, make
from gossamer.train.model import parameter_groups

AT = "@"


def is_recipe(run: str) -> bool:
    """Whether the text of a run names a recipe.

    Example:
        >>> [is_recipe(run) for run in ("dense", "2:4", "rigl@90%", "rigl")]
        [False, False, True, True]
    """
    return AT in run or run.strip().lower().replace("_", "-") in RECIPES


def canonical(run: str) -> str:
    """The text of a run with a recipe, as names and patterns are written by themselves.

    Args:
        run: "RECIPE" or "RECIPE@PATTERN".

    Returns:
        "recipe@pattern".

    Raises:
        GossamerError: no such recipe, or no such pattern.

    Example:
        >>> canonical(" SRSTE @ 2 : 4 : v4"), canonical("rigl")
        ('srste@2:4:v4', 'rigl@50%')
    """
    name, at, pattern = run.partition(AT)
    name = name.strip().lower().replace("_", "-")
    return f"{name}{AT}{make(name, pattern.strip() if at else None).pattern}"


def recipe_of(run: str, seed: int, options: Iterable[str] = ()) -> Recipe:
    """The recipe that a run names.

    Args:
        run: "recipe@pattern".
        seed: of its random numbers, where it draws any.
        options: hyper-parameters as "name=value".

    Raises:
        GossamerError: no such recipe, pattern or option, or a value that it refuses.

    Example:
        >>> recipe_of("srste@1:4", 0).pattern.density
        0.25
    """
    name, _, pattern = run.partition(AT)
    given = parse_options(options)
    if "seed" not in given and any(f.name == "seed" for f in fields(entry(name).load())):
        given["seed"] = seed
    return make(name, pattern, **given)


def parse_options(options: Iterable[str]) -> dict[str, Any]:
    """Hyper-parameters from "name=value": numbers, True, False, None, else texts.

    Raises:
        RecipeError: a text has another form, or a name stands twice.

    Example:
        >>> parse_options(["adapter_rank=16", "kind=cubic"])
        {'adapter_rank': 16, 'kind': 'cubic'}
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


def groups_of(recipe: Recipe, model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: the recipe's own, each split into what decays and what does not.

    A group for which the recipe names a weight decay keeps it.

    Args:
        recipe: of the model.
        model: prepared.
        weight_decay: of matrices and the values of sparse weights.
    """
    exempt = {
        id(parameter)
        for group in parameter_groups(model, weight_decay)
        if group["weight_decay"] == 0.0
        for parameter in group["params"]  # type: ignore[attr-defined]
    }
    given = list(recipe.parameters(model))
    own = [group for group in given if isinstance(group, Mapping)]
    loose = [parameter for parameter in given if not isinstance(parameter, Mapping)]
    split: list[dict[str, Any]] = []
    for group in [*([{"params": loose}] if loose else []), *own]:
        parameters = group["params"]
        parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        if "weight_decay" in group:
            split.append({**group, "params": parameters})
            continue
        for decay in (weight_decay, 0.0):
            part = [p for p in parameters if (id(p) in exempt) == (decay == 0.0)]
            if part:
                split.append({**group, "params": part, "weight_decay": decay})
    return split


def follow_groups(scheduler: LambdaLR) -> None:
    """Let a scheduler know the groups that a recipe has added to its optimizer.

    Their learning rate at that moment is taken for the share that the schedule had then.
    """
    first = scheduler.optimizer.param_groups[0]
    for group in scheduler.optimizer.param_groups[len(scheduler.base_lrs) :]:
        # A recipe gives new parameters the learning rate of the group that they come from.
        share = group["lr"] / first["lr"] if first["lr"] else 1.0
        group.setdefault("initial_lr", first["initial_lr"] * share)
        scheduler.base_lrs.append(group["initial_lr"])
        scheduler.lr_lambdas.append(scheduler.lr_lambdas[0])


class Masks(Diagnostics):
    """Diagnostics of a recipe in training, which a checkpoint keeps: flips since the last look.

    Args:
        recipe: attached.
    """

    def state_dict(self) -> dict[str, Any]:
        """The masks of the last look."""
        return {
            name: {
                "layout": mask.layout.as_ints(), "indices": mask.indices, "indptr": mask.indptr
            }
            for name, mask in self._before.items()
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the masks of the last look.

        Raises:
            StructureError: they are damaged; nothing changed.
        """
        masks = {
            name: Structure(Layout(*one["layout"]), one["indices"], one["indptr"])
            for name, one in state.items()
        }
        for mask in masks.values():
            validate(mask)
        self._before = masks


def kept_entries(layers: Mapping[str, nn.Module]) -> tuple[int, int]:
    """Entries that prepared layers use in a forward pass, and those that they would have dense."""
    kept = whole = 0
    for layer in layers.values():
        for module in layer.modules():
            if isinstance(module, MaskedLinear):
                soft = module.softness.item() > 0.0
                kept += module.weight.numel() if soft else module.nnz
                whole += module.weight.numel()
            elif isinstance(module, SparseLinear):
                kept += module.weight.nnz
                whole += module.weight.shape.numel()
    return kept, whole


def density_of(model: nn.Module, recipe: Recipe, dense: int) -> float:
    """Share of a dense twin's parameters that a prepared model uses.

    Args:
        model: prepared, and `recipe` attached to it.
        recipe: of it.
        dense: parameters of the twin.
    """
    kept, _ = kept_entries(recipe.layers)
    masters = [m for m in model.modules() if isinstance(m, MaskedLinear)]
    sparse = [m for m in model.modules() if isinstance(m, SparseLinear)]
    inside = {id(m.weight) for m in masters} | {id(m.weight.values) for m in sparse}
    rest = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    return (kept + rest) / dense


def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe | None) -> int:
    """Bytes of training state: parameters, gradients, moments, structure, the recipe's tensors."""
    total = summary(model, optimizer).total
    if recipe is not None:
        total += sum(tensor.nbytes for tensor in _tensors(recipe.state))
    for module in model.modules():
        if isinstance(module, MaskedLinear):
            total += sum(b.nbytes for b in module.buffers(recurse=False))
            transposed = module._transposed
            total += sum(t.nbytes for t in _tensors(transposed) if t is not None)
    return total


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
