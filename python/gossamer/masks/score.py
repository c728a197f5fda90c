"""Masks from scores, and a budget shared among layers.

A slot is the unit that is kept or dropped: an entry, a column of V rows, or a tile. Its score is
the sum over its entries. A selection keeps the best slots (per group of m for N:M, of the whole
weight otherwise), exactly `pattern.count(rows, cols)` entries; of equal scores the slot with the
lower row-major index is kept. A NaN ranks above infinity, so that no selection hides it. The result
does not depend on the number of threads.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from gossamer.arguments import shown
from gossamer.backend import check_array
from gossamer.backend.arrays import FLOATING
from gossamer.errors import (
    ArgumentError,
    DeviceError,
    DTypeError,
    ShapeError,
    StructureError,
)
from gossamer.masks.grouped import check_balance
from gossamer.masks.selection import is_own, obeys, select, spread
from gossamer.patterns import (
    NM,
    GroupedNM,
    Nonzeros,
    Pattern,
    check_sizes,
    parse_pattern,
    unit_interval,
)

__all__ = ["allocate", "as_shape", "check_mask", "magnitude_mask", "mask_from_score"]

Distribution = Literal["uniform", "erk"]


def magnitude_mask(weight: torch.Tensor, pattern: str | Pattern) -> torch.Tensor:
    """Return the mask of the entries with the largest magnitudes.

    Args:
        weight: float16, bfloat16, float32 or float64 `[rows, cols]`, any strides. NaN ranks
            above infinity.
        pattern: a pattern or its text. The score of a slot of several entries (V > 1, or a tile)
            is the sum of their magnitudes. "nonzeros" keeps every slot that is not zero.

    Returns:
        bool `[rows, cols]`, True = kept, on the device of `weight`.

    Raises:
        DTypeError: not a torch tensor of one of those dtypes.
        ShapeError: not of rank 2.
        PatternError: the shape does not fit the pattern.

    Example:
        >>> magnitude_mask(torch.tensor([[1.0, -3.0, 2.0, 0.0]]), "2:4")
        tensor([[False,  True,  True, False]])
    """
    score = _score(weight, "magnitude_mask: weight").abs()
    pattern = parse_pattern(pattern)
    return _mask(score, pattern, "magnitude_mask")


def mask_from_score(score: torch.Tensor, pattern: str | Pattern) -> torch.Tensor:
    """Return the mask of the entries with the largest scores.

    Args:
        score: float16, bfloat16, float32 or float64 `[rows, cols]`, any strides. Signed: larger
            scores are kept first; NaN ranks above `inf`, and `-inf` last.
        pattern: a pattern or its text. The score of a slot of several entries (V > 1, or a tile)
            is the sum of theirs; a slot must not hold both `inf` and `-inf`.

    Returns:
        bool `[rows, cols]`, True = kept, on the device of `score`.

    Raises:
        DTypeError: not a torch tensor of one of those dtypes.
        ShapeError: not of rank 2.
        PatternError: the shape does not fit the pattern.
        ArgumentError: a slot holds both `inf` and `-inf`.

    Example:
        >>> mask_from_score(torch.tensor([[1.0, -3.0, 2.0, 2.0]]), "75%")
        tensor([[False, False,  True, False]])
    """
    pattern = parse_pattern(pattern)
    if isinstance(pattern, Nonzeros):
        pattern.refuse(
            "scores, because it takes the zeros of a dense weight",
            "pass that to magnitude_mask, or choose a pattern such as 90%",
        )
    return _mask(_score(score, "mask_from_score: score"), pattern, "mask_from_score")


def check_mask(mask: torch.Tensor, pattern: str | Pattern) -> None:
    """Raise unless the mask obeys the pattern, including its exact count.

    Args:
        mask: bool `[rows, cols]`, True = kept.
        pattern: a pattern or its text.

    Raises:
        StructureError: rows of a panel or entries of a tile differ, a group does not keep n, or
            the mask does not keep `pattern.count(rows, cols)` entries.
        DTypeError: not a bool torch tensor.
        ShapeError: not of rank 2.
        PatternError: the shape does not fit the pattern.

    Example:
        >>> check_mask(torch.tensor([[True, False, True, False]]), "2:4")
    """
    mask = _matrix(mask, "check_mask: mask", (torch.bool,))
    pattern = parse_pattern(pattern)
    rows, cols = mask.shape
    pattern.check_shape(rows, cols, "check_mask")
    high, wide = pattern.tile
    slots = mask[::high, ::wide]
    mixed = mask != spread(slots, high, wide)
    if bool(mixed.any()):
        row, col = _first(mixed)
        top, left = row - row % high, col - col % wide
        raise StructureError(
            f"check_mask got a mask whose entries [{row}, {col}] and [{top}, {left}] differ; "
            f"with pattern {pattern} each {high}x{wide} tile is kept or dropped as one: "
            "build the mask with mask_from_score, or choose a pattern with smaller tiles"
        )
    if isinstance(pattern, NM | GroupedNM):
        kept = slots.reshape(slots.shape[0], cols // pattern.m, pattern.m).sum(dim=2)
        wrong = kept != pattern.n
        if bool(wrong.any()):
            panel, group = _first(wrong)
            raise StructureError(
                f"check_mask got a mask that keeps {int(kept[panel, group])} of the {pattern.m} "
                f"columns from {group * pattern.m} of row {panel * high}; pattern {pattern} needs "
                f"exactly {pattern.n}: build the mask with mask_from_score"
            )
        if isinstance(pattern, GroupedNM):
            check_balance(mask, pattern)
    elif not is_own(pattern):
        obeys(slots, pattern, "check_mask got a mask that")
    elif (given := int(mask.sum())) != (needed := pattern.count(rows, cols)):
        raise StructureError(
            f"check_mask got a mask that keeps {given} of {mask.numel()} entries; pattern "
            f"{pattern} needs exactly {needed} of shape [{rows}, {cols}]: choose "
            f"sparsity={1 - given / mask.numel()!r}, or build the mask with mask_from_score"
        )


def allocate(
    shapes: Mapping[str, Sequence[int]], sparsity: float, distribution: Distribution = "uniform"
) -> dict[str, float]:
    """Distribute a global sparsity over layers.

    "uniform" gives every layer the same sparsity. "erk" (Erdos-Renyi kernel) gives a layer the
    density eps * (sum of sizes) / (product of sizes): small layers stay denser. Layers above
    density 1 become dense and eps is solved again, so the kept share of all entries is
    1 - sparsity.

    Args:
        shapes: `(rows, cols)` by layer name.
        sparsity: dropped share of all entries, in [0, 1].
        distribution: "uniform" or "erk".

    Returns:
        Sparsity by layer name. The budget is met to floating-point accuracy; a pattern then
        rounds each layer to whole entries.

    Raises:
        PatternError: a sparsity outside [0, 1].
        ArgumentError: an unknown distribution.
        ShapeError: a shape does not have two non-negative sizes.

    Reference:
        Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse
        connectivity"; Evci et al. 2020, "Rigging the Lottery", section 3.

    Example:
        >>> allocate({"wide": (128, 128), "a": (64, 64), "b": (64, 64)}, 0.75, "erk")
        {'wide': 0.8125, 'a': 0.625, 'b': 0.625}
    """
    if not isinstance(shapes, Mapping):
        raise DTypeError(f"allocate got shapes={shown(shapes)}; pass sizes by layer name")
    sizes = {name: as_shape(shape, f"allocate, layer {name!r},") for name, shape in shapes.items()}
    sparsity = unit_interval(sparsity, "allocate")
    if distribution == "uniform":
        return dict.fromkeys(sizes, sparsity)
    if distribution != "erk":
        raise ArgumentError(
            f"allocate got distribution={distribution!r}; it must be a known one: "
            'choose "uniform" or "erk"'
        )
    density = dict.fromkeys(sizes, 1.0)
    # A layer without entries uses nothing of the budget; it counts as dense.
    open_layers = [name for name, (rows, cols) in sizes.items() if rows * cols]
    budget = (1.0 - sparsity) * sum(math.prod(sizes[name]) for name in open_layers)
    while open_layers:
        # density * product of sizes = eps * sum of sizes: the entries that the layer keeps.
        eps = budget / sum(sum(sizes[name]) for name in open_layers)
        for name in open_layers:
            density[name] = eps * sum(sizes[name]) / math.prod(sizes[name])
        # Making these dense frees their excess and raises eps: all of them stay above 1.
        full = {name for name in open_layers if density[name] > 1.0}
        if not full:
            break
        for name in full:
            density[name] = 1.0
            budget -= math.prod(sizes[name])
        open_layers = [name for name in open_layers if name not in full]
    return {name: 1.0 - kept for name, kept in density.items()}


def _mask(score: torch.Tensor, pattern: str | Pattern, who: str) -> torch.Tensor:
    pattern = parse_pattern(pattern)
    rows, cols = score.shape
    pattern.check_shape(rows, cols, who)
    high, wide = pattern.tile
    if high * wide > 1:
        tiles = score.reshape(rows // high, high, cols // wide, wide)
        # float64: sums of the same entries in another order stay equal, so ties are ties.
        score = tiles.sum(dim=(1, 3), dtype=torch.float64)
        clash = torch.isnan(score)
        if bool(clash.any()):
            clash &= ~torch.isnan(tiles).any(dim=3).any(dim=1)
        if bool(clash.any()):
            row, col = _first(clash)
            raise ArgumentError(
                f"{who} got inf and -inf in the {high}x{wide} tile at [{row * high}, "
                f"{col * wide}], whose sum is NaN; a tile must not hold both: "
                "use large finite scores for one of them"
            )
    return spread(select(score, pattern), high, wide)


def _score(x: object, name: str) -> torch.Tensor:
    """Return the detached tensor in float32 or float64, if it can serve as a score."""
    x = _matrix(x, name, FLOATING)
    return x if x.dtype == torch.float64 else x.float()


def _matrix(x: object, name: str, dtypes: Sequence[torch.dtype]) -> torch.Tensor:
    matrix: torch.Tensor = check_array(x, name, rank=2, dtypes=dtypes)
    if matrix.is_meta:
        raise DeviceError(
            f"{name} is on the meta device, which holds no numbers; a mask needs them: "
            "materialise the weight first, or use random_mask"
        )
    return matrix


def as_shape(shape: object, who: str) -> tuple[int, int]:
    """Return both sizes of a weight; ShapeError or DTypeError for anything else."""
    if isinstance(shape, str) or not isinstance(shape, Sequence):
        raise DTypeError(
            f"{who} got shape={shape!r}; it must be a sequence of two sizes: pass (rows, cols)"
        )
    if len(shape) != 2:
        raise ShapeError(
            f"{who} got shape={list(shape)}; it must have two sizes: pass (rows, cols)"
        )
    rows, cols = check_sizes(shape[0], shape[1], who)
    if rows * cols >= 2**48:
        raise ShapeError(
            f"{who} got shape [{rows}, {cols}]; rows * cols must be below 2**48 entries: "
            "check the sizes, no machine holds such a weight"
        )
    return rows, cols


def _first(found: torch.Tensor) -> tuple[int, int]:
    index = int(found.flatten().to(torch.uint8).argmax())
    return index // found.shape[1], index % found.shape[1]
