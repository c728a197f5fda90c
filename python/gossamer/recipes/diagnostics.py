"""Diagnostics: plain numbers about the masks of a recipe, measured on request.

    density           kept entries over all entries
    density_target    density of the final pattern
    flips, flip_rate  entries whose mask bit changed since the last measurement, and their share
    double_pruned     share of the kept entries that N:M pruning down the columns would drop
    input_cosine      cosine between the input gradients and dY W of the used weight

Make `Diagnostics(recipe)` after `attach`. `measure()` returns the numbers of the whole model and of
each layer. `watch()` encloses a forward and backward pass whose input gradients are compared.
Outside these two calls nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.arguments import check
from gossamer.backend import Structure
from gossamer.errors import RecipeError
from gossamer.masks import double_prune
from gossamer.masks.n_of_m import mask_difference
from gossamer.nn import MaskedLayer
from gossamer.recipes.base.recipe import Recipe

__all__ = ["Diagnostics", "flips_between", "lost_by_double_pruning"]


class Diagnostics:
    """Numbers about the masks of an attached recipe.

    Args:
        recipe: a recipe that is attached to a model; flips count from now on.

    Raises:
        RecipeError: the recipe is not attached.

    Reference:
        Zhou et al. 2021, "Learning N:M Fine-Grained Structured Sparse Neural Networks From Scratch"
        (SAD); Hu et al. 2024, "Accelerating Transformer Pre-training with 2:4 Sparsity" (flip
        rate); Mozaffari et al. 2025, "SLoPe" (double pruning).

    Example:
        >>> from gossamer.recipes import STE
        >>> recipe = STE("2:4")
        >>> model = recipe.prepare(nn.Sequential(nn.Linear(8, 4)))
        >>> recipe.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=10)
        >>> found = Diagnostics(recipe).measure()
        >>> found["density"], found["flips"], found["layers"]["0"]["density_target"]
        (0.5, 0, 0.5)
    """

    def __init__(self, recipe: Recipe) -> None:
        check(Diagnostics.__init__, locals())
        if not recipe.layers:
            raise RecipeError("Diagnostics got a recipe that is not attached; attach it first")
        self.recipe = recipe
        self._before = {name: _copy(p.structure) for name, p in self._parts()}
        # Per watched layer: the inner product with the exact gradient, and both squared norms.
        self._products: dict[str, Tensor] = {}

    def measure(self) -> dict[str, Any]:
        """Return the present numbers; flips and cosines cover the time since the last call.

        Returns:
            `density`, `density_target`, `flips`, `flip_rate` over all layers; `double_pruned` for
            N:M layers and `input_cosine` after `watch`; under `layers` the same per layer by name.
            All values are numbers, fit for JSON.
        """
        layers: dict[str, dict[str, float]] = {}
        entries = kept = flips = survivors = lost = 0
        target = 0.0
        for name, part in self._parts():
            structure = part.structure
            size = structure.layout.rows * structure.layout.cols
            numbers: dict[str, float] = {
                "density": part.used_entries / max(size, 1),
                "density_target": part.target.density,
                "flips": flips_between(self._before.get(name, structure), structure),
            }
            numbers["flip_rate"] = numbers["flips"] / max(size, 1)
            self._before[name] = _copy(structure)
            entries += size
            kept += part.used_entries
            target += numbers["density_target"] * size
            flips += int(numbers["flips"])
            if (found := lost_by_double_pruning(part)) is not None:
                numbers["double_pruned"] = found[0] / max(found[1], 1)
                lost, survivors = lost + found[0], survivors + found[1]
            if (cosine := _cosine(self._products.get(name))) is not None:
                numbers["input_cosine"] = cosine
            layers[name] = numbers
        total: dict[str, Any] = {
            "density": kept / max(entries, 1), "density_target": target / max(entries, 1),
            "flips": flips, "flip_rate": flips / max(entries, 1),
        }  # fmt: skip
        if survivors:
            total["double_pruned"] = lost / survivors
        if (
            cosine := _cosine(sum(self._products.values(), torch.zeros(3, dtype=torch.float64)))
        ) is not None:
            total["input_cosine"] = cosine
        self._products = {}
        return total | {"layers": layers}

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Compare the input gradients of the enclosed backward passes with the exact ones.

        The exact gradient of a layer is dY W with the weight that its forward pass used; it costs
        one dense product per layer. `measure` returns the cosines.
        """
        handles = []
        for name, part in self._parts():
            # A view of the input excludes the gradients that other layers send to it.
            handles.append(part.register_forward_pre_hook(_split, with_kwargs=True))
            handles.append(
                part.register_forward_hook(partial(self._follow, name), with_kwargs=True)
            )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _follow(
        self,
        name: str,
        part: MaskedLayer,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        y: Tensor,
    ) -> None:
        """Compare in a hook on the input, whose gradient arrives after that of the output."""
        x = args[0] if args else kwargs["input"]
        if not (torch.is_grad_enabled() and x.requires_grad and y.requires_grad):
            return
        arrived: list[Tensor] = []

        def compare(found: Tensor) -> None:
            used = part.used_weight()
            for g in arrived:
                exact = (g.to(used.dtype) @ used).double().flatten()
                ours = found.double().flatten()
                products = torch.stack([ours.dot(exact), ours.dot(ours), exact.dot(exact)])
                self._products[name] = self._products.get(name, torch.zeros(())) + products

        y.register_hook(arrived.append)  # type: ignore[no-untyped-call]
        x.register_hook(torch.no_grad()(compare))

    def _parts(self) -> Iterator[tuple[str, MaskedLayer]]:
        """Yield the layers with a mask; for a composite layer, the first masked layer inside."""
        for name, layer in self.recipe.layers.items():
            for module in layer.modules():
                if isinstance(module, MaskedLayer):
                    yield name, module
                    break


def flips_between(before: Structure, after: Structure) -> int:
    """Return the number of entries in which two masks of one weight differ.

    Example:
        >>> a, b = torch.tensor([[True, False]]), torch.tensor([[False, True]])
        >>> flips_between(backend.encode(a, vector=1), backend.encode(b, vector=1))
        2
    """
    first, second = before.layout, after.layout
    if (first.vector, first.block_cols) == (second.vector, second.block_cols):
        return mask_difference(before, after)
    return int((backend.mask(before) ^ backend.mask(after)).sum())


def lost_by_double_pruning(part: MaskedLayer) -> tuple[int, int] | None:
    """Count the kept entries of an N:M weight that N:M pruning down the columns would drop.

    Args:
        part: a layer with a mask.

    Returns:
        The number of dropped entries and of kept entries; None if the pattern is not N:M.
    """
    structure = part.structure
    if not structure.layout.m:
        return None
    kept = double_prune(part.kept_values(), structure, structure.layout.n, structure.layout.m)
    return structure.nnz - len(kept.perm), structure.nnz


def _split(
    part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    x = args[0] if args else kwargs["input"]
    return ((x.view_as(x),), {}) if x.requires_grad else None


def _copy(structure: Structure) -> Structure:
    pointers = None if structure.indptr is None else structure.indptr.clone()
    return Structure(structure.layout, structure.indices.clone(), pointers)


def _cosine(products: Tensor | None) -> float | None:
    if products is None:
        return None
    dot, found, exact = products.tolist()
    length = (found * exact) ** 0.5
    return dot / length if length > 0.0 else None
