"""Essential sparsity: how far a model can be cut at once, without training, before it drops.

Each point cuts a copy of the model, as `gossamer.sparsify` does, and evaluates it. The knee is the
last point whose value is within a tolerance of the dense one.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gossamer.arguments import check, is_number
from gossamer.errors import ArgumentError
from gossamer.nn.globs import Globs
from gossamer.nn.layers.base import MaskedLayer
from gossamer.nn.layers.parameter import SparseParameter
from gossamer.nn.ranking import Score
from gossamer.nn.surgery import sparsify
from gossamer.patterns import Pattern, Unstructured, parse_pattern
from gossamer.tables import text_table

__all__ = ["PATTERNS", "Essential", "Point", "essential"]

Evaluate = Callable[[nn.Module], Any]
SPARSITIES = tuple(percent / 100 for percent in range(5, 100, 5))
PATTERNS = ("2:4", "1:4")


@dataclass(frozen=True)
class Point:
    """One cut: the share of the weights that it drops, and the value of the cut model."""

    sparsity: float
    value: float


@dataclass(frozen=True)
class Essential:
    """What cuts cost; `print` shows a table, `plot` draws it.

    Args:
        dense: value of the model as it is.
        curve: of unstructured cuts in all layers, by sparsity.
        patterns: of cuts by other patterns, by their texts.
        layers: of unstructured cuts in one layer each, by its name; empty unless asked for.
        tolerance: by how much a value may be worse than the dense one, relative to it.
    """

    dense: float
    curve: tuple[Point, ...]
    patterns: dict[str, Point] = field(default_factory=dict)
    layers: dict[str, tuple[Point, ...]] = field(default_factory=dict)
    tolerance: float = 0.01

    @property
    def knee(self) -> float:
        """The largest sparsity whose value is within the tolerance; 0 if there is none.

        Example:
            >>> points = tuple(Point(s, v) for s, v in ((0.3, 1.0), (0.5, 1.005), (0.7, 1.5)))
            >>> Essential(1.0, points).knee
            0.5
        """
        return self._knee(self.curve)

    def layer_knee(self, name: str) -> float:
        """Return the knee of the cuts in one layer alone.

        Raises:
            ArgumentError: the layer has no curve.
        """
        check(Essential.layer_knee, locals())
        if name not in self.layers:
            known = ", ".join(self.layers) or "none: call essential(..., by_layer=True)"
            raise ArgumentError(f"layer_knee got {name!r:.80}; there are curves of {known}")
        return self._knee(self.layers[name])

    def plot(self, path: str | Path) -> None:
        """Draw the curves into a PNG file; needs matplotlib.

        Raises:
            OSError: the file cannot be written.
        """
        check(Essential.plot, locals())
        from gossamer.pruning.essential_picture import plot

        plot(self, path)

    def __str__(self) -> str:
        rows = [("dense", "0", *self._cells(self.dense))]
        rows += [("all layers", f"{p.sparsity:.3g}", *self._cells(p.value)) for p in self.curve]
        rows += [
            (text, f"{p.sparsity:.3g}", *self._cells(p.value)) for text, p in self.patterns.items()
        ]
        rows += [
            (name or "(model)", f"{p.sparsity:.3g}", *self._cells(p.value))
            for name, points in self.layers.items()
            for p in points
        ]
        knees = [
            f"{name or '(model)'}: knee at {self.layer_knee(name):.3g}" for name in self.layers
        ]
        return text_table(
            "cut once, without training",
            ("cut", "sparsity", "value", "to dense", "within"),
            rows,
            notes=[f"knee at {self.knee:.3g}, tolerance {self.tolerance:g} of dense", *knees],
        )

    def _within(self, value: float) -> bool:
        return value <= self.dense + self.tolerance * abs(self.dense)

    def _knee(self, points: Sequence[Point]) -> float:
        return max((p.sparsity for p in points if self._within(p.value)), default=0.0)

    def _cells(self, value: float) -> tuple[str, str, str]:
        change = value - self.dense
        return f"{value:.6g}", f"{change:+.3g}", "yes" if self._within(value) else "no"


def essential(
    model: nn.Module,
    evaluate: Evaluate,
    sparsities: Sequence[float] = SPARSITIES,
    patterns: Sequence[str | Pattern] = PATTERNS,
    score: Score = "magnitude",
    tolerance: float = 0.01,
    by_layer: bool = False,
    include: Globs = ("*",),
    exclude: Globs = (),
) -> Essential:
    """Measure what one-shot cuts cost a model.

    The model does not change, whatever `evaluate` does: each cut is made in a copy.

    Args:
        model: any trained module.
        evaluate: returns the value of a model, one number of which less is better: a loss, or an
            accuracy with a minus.
        sparsities: of the unstructured cuts, in [0, 1); all layers get the same.
        patterns: further cuts: patterns or their texts.
        score: how entries are ranked, as in `gossamer.sparsify`.
        tolerance: for the knee: by how much a value may be worse, as a share of the dense one.
        by_layer: also cut each layer alone, at all the sparsities: as many evaluations per layer.
        include: globs of the modules to cut.
        exclude: globs of the modules to leave dense.

    Returns:
        The curves and the knee.

    Raises:
        ArgumentError: a sparsity outside [0, 1), `evaluate` returns no number, or the model cannot
            be copied.
        PatternError: a layer does not fit a pattern.

    Reference:
        Jaiswal et al. 2023, "The Emergence of Essential Sparsity in Large Pre-trained Models: The
        Weights that Matter".

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> x = torch.randn(16, 8)
        >>> y = model(x).detach()
        >>> found = essential(model, lambda m: (m(x) - y).detach().norm(), [0.25, 0.5])
        >>> len(found.curve), sorted(found.patterns), found.knee
        (2, ['1:4', '2:4'], 0.0)
    """
    check(essential, locals())
    for sparsity in sparsities:
        if not 0.0 <= sparsity < 1.0:
            raise ArgumentError(
                f"essential got the sparsity {sparsity!r:.40}; it must be in [0, 1): give shares "
                "such as 0.5"
            )
    if not (is_number(tolerance) and 0.0 <= tolerance < math.inf):
        raise ArgumentError(f"essential got tolerance={tolerance!r:.40}; give a number >= 0")

    def cut(pattern: Pattern, only: Globs = include) -> Point:
        changed = sparse_copy(model, "essential", pattern, only, exclude, score=score)
        layers = [module for module in changed.modules() if isinstance(module, MaskedLayer)]
        entries = sum(layer.out_features * layer.in_features for layer in layers)
        kept = sum(layer.nnz for layer in layers)
        return Point(1.0 - kept / max(entries, 1), number_of(evaluate, changed, "essential"))

    dense = number_of(evaluate, copied(model, "essential"), "essential")
    cuts = [Unstructured(float(sparsity)) for sparsity in sparsities]
    curve = tuple(map(cut, cuts))
    found = {str(pattern): cut(pattern) for pattern in map(parse_pattern, patterns)}
    layers = {}
    if by_layer:
        names = _names(sparse_copy(model, "essential", "50%", include, exclude, score="random"))
        layers = {name: tuple(cut(pattern, name) for pattern in cuts) for name in names}
    return Essential(dense, curve, found, layers, float(tolerance))


def copied(model: nn.Module, who: str) -> nn.Module:
    """Return a copy of a model.

    Raises:
        ArgumentError: it cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # of whatever the model holds
        raise ArgumentError(
            f"{who} works on copies, and {type(model).__name__} cannot be copied "
            f"({type(error).__name__}: {error!s:.200}); take what cannot be off the model first"
        ) from error


def sparse_copy(model: nn.Module, who: str, *args: Any, **options: Any) -> nn.Module:
    """Return a sparse copy of a model, of the arguments of `gossamer.sparsify`.

    What stays dense is the same in each copy, and is not told each time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return sparsify(copied(model, who), *args, **options)


def number_of(evaluate: Evaluate, model: nn.Module, who: str) -> float:
    """Return the value of a model.

    Raises:
        ArgumentError: it is no number.
    """
    value = evaluate(model)
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not is_number(value):
        raise ArgumentError(
            f"{who}: evaluate returned a {type(value).__name__}; it must return one number, of "
            "which less is better"
        )
    return float(value)


def _names(model: nn.Module) -> list[str]:
    """Return the names of the outermost layers with a mask."""
    found: list[str] = []
    parameters = list(SparseParameter.find_in(model))
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{above}.") for above in found)
        if (isinstance(module, MaskedLayer) or module in parameters) and not inside:
            found.append(name)
    return found
