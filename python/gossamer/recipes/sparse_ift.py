"""SparseIFT: iso-FLOP transformations: dense layers become larger ones whose sparsity pays for it.

With sparsity s and k = 1 / (1 - s), a layer of d_in x d_out becomes, at d_in d_out multiply-adds
per row of input (up to rounding),

    parallel     k sparse branches, summed
    factorized   two sparse factors, d_lr = d_in d_out / ((1 - s) (d_in + d_out)) between them
    doped        one sparse layer, and a dense one of rank s d_in d_out / (d_in + d_out) beside it
    wide         two consecutive layers with k times as many hidden units between them

Inputs and outputs of the model keep their sizes. The paper's wide layers grow by sqrt(k) on both
sides; here only the hidden side grows, by k.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from gossamer.arguments import check
from gossamer.errors import PatternError, RecipeError
from gossamer.nn import MaskedLayer, SparseLinear
from gossamer.nn.globs import Globs, as_globs, covers
from gossamer.nn.layers.iso_flop import (
    NONLINEARITIES,
    Branches,
    Doped,
    Factors,
    gain,
    set_gain,
    sizes,
)
from gossamer.nn.left_dense import is_dense_linear
from gossamer.nn.ranking import Score
from gossamer.patterns import Pattern, parse_pattern
from gossamer.recipes.base.checks import check_choice
from gossamer.recipes.base.recipe import Recipe
from gossamer.recipes.base.source import Source

Method = Literal["parallel", "factorized", "doped", "wide"]


@dataclass(eq=False)
class SparseIFT(Recipe):
    """Replace dense layers by larger sparse ones of the same cost.

    The new weights are drawn from torch's generator and scaled so that outputs start with the
    variance of the dense layer; masks are random and fixed.

    "wide" needs two consecutive linear layers of one module, without weights between them, the
    first of which widens; layers of the same sizes beside it (a gate) grow with it. Other layers
    are left dense, with a warning unless they are excluded.

    Args:
        pattern: the pattern of the sparse layers; its sparsity sets how much larger they are.
        distribution: how layers share the sparsity: "uniform" or "erk".
        method: "parallel", "factorized", "doped" or "wide".
        nonlinearity: non-linearity of the branches ("parallel") or between the factors
            ("factorized"): "none", "relu" or "gelu". With "none" they could be merged into one
            matrix.

    Raises:
        RecipeError: an unknown method or non-linearity, or sparsity 1.

    Reference:
        Thangarasa et al. 2023, "Sparse-IFT: Sparse Iso-FLOP Transformations for Maximizing
        Training Efficiency".

    Example:
        >>> recipe = SparseIFT("75%", method="parallel")
        >>> model = recipe.prepare(nn.Sequential(nn.Linear(16, 8)))
        >>> len(model[0].branches), macs(model[0])
        (4, 128)
    """

    method: Method = "parallel"
    nonlinearity: Literal["none", "relu", "gelu"] = "none"

    id = "sparse-ift"
    renamed: ClassVar[dict[str, str]] = {"kind": "method"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.method, "SparseIFT got method", get_args(Method))
        check_choice(self.nonlinearity, "SparseIFT got nonlinearity", tuple(NONLINEARITIES))
        if parse_pattern(self.pattern).density == 0.0:
            raise RecipeError("SparseIFT got a pattern that keeps nothing; keep something")
        self._hidden: dict[str, tuple[int, int]] = {}

    def prepare(
        self,
        model: nn.Module,
        include: Globs = ("*",),
        exclude: Globs = (),
        rescale: bool = False,
        score: Score | None = None,
        source: Source | None = None,
    ) -> nn.Module:
        """Replace the linear layers, as the base does; "wide" replaces layers of a pair only.

        Raises:
            PatternError: a layer does not fit, or no two layers form a pair.
        """
        check(SparseIFT.prepare, locals())
        if self.method != "wide":
            return super().prepare(model, include, exclude, rescale, score, source)
        self.check_fresh(model)
        pattern = parse_pattern(self.pattern)
        taken = [
            name
            for name, module in model.named_modules()
            if is_dense_linear(module)
            and any(covers(glob, name) for glob in as_globs(include))
            and not any(covers(glob, name) for glob in as_globs(exclude))
        ]
        self._hidden = {}
        for ups, down, hidden in pairs(model):
            if all(name in taken for name in (*ups, down)):
                wider = fitting(hidden / pattern.density, pattern)
                for name in ups:
                    self._hidden[name] = (sizes(model.get_submodule(name))[0], wider)
                self._hidden[down] = (wider, sizes(model.get_submodule(down))[1])
        if not self._hidden:
            raise PatternError(
                "SparseIFT found no two linear layers in a row, the first of which widens, among "
                f"{', '.join(taken) or 'no layers'}; choose another method"
            )
        if left := [name for name in taken if name not in self._hidden]:
            note = f"left dense, because they are in no pair: {', '.join(left)}"
            warnings.warn(note, UserWarning, stacklevel=2)
        return super().prepare(model, list(self._hidden), exclude, rescale, score, source)

    def parameters(self, model: nn.Module, scale_lr: float | bool = False) -> list[dict[str, Any]]:
        """Return the parameters: an output sums as many inputs as before, so no rate is scaled."""
        check(SparseIFT.parameters, locals())
        return super().parameters(model)

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """Build the sparse layers of the same cost."""
        inputs, outputs, dtype = sizes(linear)
        dense = inputs * outputs
        if self.method == "parallel":
            return Branches(linear, pattern, round(1.0 / pattern.density), self.nonlinearity)
        if self.method == "factorized":
            rank = fitting(dense / (pattern.density * (inputs + outputs)), pattern)
            return Factors(linear, pattern, rank, self.nonlinearity)
        if self.method == "doped":
            rank = max(round(pattern.sparsity * dense / (inputs + outputs)), 1)
            return Doped(linear, pattern, rank)
        inputs, outputs = self._hidden[name]
        has_bias = linear.bias is not None
        wide = SparseLinear(inputs, outputs, has_bias, pattern=pattern, dtype=dtype)
        set_gain(wide, gain(linear.weight))  # type: ignore[arg-type]
        return wide


def macs(module: nn.Module) -> int:
    """Multiply-adds of the linear layers inside a module, for one row of input.

    Example:
        >>> macs(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)))
        40
    """
    total = 0
    for part in module.modules():
        if isinstance(part, MaskedLayer):
            total += part.used_entries
        elif isinstance(part, nn.Linear):
            total += part.weight.numel()
    return total


def pairs(model: nn.Module) -> Iterator[tuple[list[str], str, int]]:
    """Linear layers in a row that share nothing but a hidden size.

    Yields:
        (names of the layers that make the hidden units, of the one that reads them, their
        number). The first must widen, so that layers side by side (queries, keys) are no pair.
    """
    for path, parent in model.named_modules():
        children = list(parent.named_children())
        linears = [i for i, (_, child) in enumerate(children) if is_dense_linear(child)]
        for i, j in pairwise(linears):
            first, second = children[i][1], children[j][1]
            (inputs, hidden, _), (reads, _, _) = sizes(first), sizes(second)
            between = any(list(c.parameters()) + list(c.buffers()) for _, c in children[i + 1 : j])
            if hidden != reads or hidden <= inputs or between:
                continue
            names = [
                children[n][0] for n in linears if sizes(children[n][1])[:2] == (inputs, hidden)
            ]
            stem = f"{path}." if path else ""
            yield [stem + name for name in names], stem + children[j][0], hidden


def fitting(size: float, pattern: Pattern) -> int:
    """The size nearest to a number that both as rows and as columns fits a pattern."""
    wide = pattern.group[1] or pattern.tile[1]
    unit = math.lcm(pattern.tile[0], wide)
    return max(round(size / unit), 1) * unit


__all__ = ["SparseIFT", "macs", "pairs"]
