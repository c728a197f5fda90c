"""Random masks, drawn as structures: time and memory are those of the kept entries.

Every mask of a pattern has the same probability. The draws are integers without bias, seeded for
each part of the weight, so a seed gives the same mask for any number of threads.
"""

from collections.abc import Sequence

import torch

from gossamer import backend
from gossamer.backend import Structure
from gossamer.backend.masks import draw_entries, draw_groups, draw_tiles
from gossamer.errors import ArgumentError
from gossamer.masks.grouped import draw_choices
from gossamer.masks.runs import repeat_lists
from gossamer.masks.score import as_shape
from gossamer.masks.selection import is_own, select, spread
from gossamer.patterns import NM, GroupedNM, Pattern, as_integer, parse_pattern

__all__ = ["random_mask", "random_structure"]


def random_mask(shape: Sequence[int], pattern: str | Pattern, seed: int = 0) -> torch.Tensor:
    """Return a random mask, uniform over all masks of the pattern.

    For a pattern from outside the package it is what its selection keeps of random scores.

    Args:
        shape: `(rows, cols)`.
        pattern: a pattern or its text.
        seed: 0 <= seed < 2**64. The same seed gives the same mask; torch's global generator is
            not used.

    Returns:
        bool `[rows, cols]`, True = kept, on the CPU.

    Raises:
        ShapeError: the shape does not have two sizes, or a size is negative or too large.
        DTypeError: the seed or a size is not an integer.
        PatternError: the shape does not fit the pattern.
        ArgumentError: the seed is out of range.

    Example:
        >>> random_mask((4, 8), "2:4", seed=1).sum(dim=1)
        tensor([4, 4, 4, 4])
    """
    return backend.mask(_drawn(shape, pattern, seed, "random_mask"))


def random_structure(shape: Sequence[int], pattern: str | Pattern, seed: int = 0) -> Structure:
    """Return the structure of `random_mask` with these arguments, without the dense mask.

    Args:
        shape: `(rows, cols)`.
        pattern: a pattern or its text.
        seed: 0 <= seed < 2**64.

    Returns:
        The structure, on the CPU.

    Raises:
        ShapeError, DTypeError, PatternError, ArgumentError: as `random_mask`; also ShapeError for
            2**31 kept entries or more.

    Example:
        >>> random_structure((10_000, 10_000), "99.99%").nnz
        10000
    """
    return _drawn(shape, pattern, seed, "random_structure")


def _drawn(shape: Sequence[int], pattern: str | Pattern, seed: int, who: str) -> Structure:
    rows, cols = as_shape(shape, who)
    pattern = parse_pattern(pattern)
    pattern.check_shape(rows, cols, who)
    seed = as_integer(seed, f"{who} got seed")
    if not 0 <= seed < 2**64:
        raise ArgumentError(
            f"{who} got seed={seed}; 0 <= seed < 2**64 must hold: pass a number such as 0"
        )
    high, wide = pattern.tile
    if isinstance(pattern, NM):
        if high == pattern.panel:
            return draw_groups(rows, cols, high, pattern.n, pattern.m, seed)
        lists = draw_groups(rows // high, cols, 1, pattern.n, pattern.m, seed)
        return repeat_lists(lists, pattern)
    if isinstance(pattern, GroupedNM):
        with torch.device("cpu"):  # whatever torch.set_default_device says
            return _grouped(rows, cols, pattern, seed)
    if not is_own(pattern):
        with torch.device("cpu"):
            generator = torch.Generator("cpu").manual_seed(seed)
            score = torch.rand(rows // high, cols // wide, generator=generator)
            mask = spread(select(score, pattern), high, wide)
        return backend.encode(mask, pattern.panel, *pattern.group)
    tiles = pattern.count(rows, cols) // (high * wide)
    if (high, wide) == (pattern.panel, 1):
        return draw_entries(rows, cols, high, tiles, seed)
    return draw_tiles(rows, cols, pattern.panel, high, wide, tiles, seed)


def _grouped(rows: int, cols: int, pattern: GroupedNM, seed: int) -> Structure:
    generator = torch.Generator("cpu").manual_seed(seed)
    chosen = draw_choices(rows, cols, pattern, generator)
    chosen += torch.arange(0, cols, pattern.m)[:, None]
    indptr = torch.arange(rows + 1) * (cols // pattern.m * pattern.n)
    return backend.encode_csr((rows, cols), indptr, chosen.flatten(), 1, pattern.n, pattern.m)[0]
