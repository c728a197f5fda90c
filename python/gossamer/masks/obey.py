"""Whether a structure obeys the part of its pattern that its layout cannot express."""

import torch

from gossamer import backend
from gossamer.backend import Layout, Structure
from gossamer.errors import StructureError
from gossamer.masks.grouped import check_choices
from gossamer.patterns import Block, GroupedNM, Pattern

__all__ = ["check_structure"]


def check_structure(structure: Structure, pattern: Pattern) -> None:
    """Raise StructureError unless tiles are whole (Block) and choices balanced (GroupedNM).

    Rows that share columns, n of every m and the number of entries belong to the layout, and are
    not checked here. Time and memory are those of the entries.

    Example:
        >>> structure = backend.encode(torch.tensor([[True, False], [True, True]]), vector=1)
        >>> check_structure(structure, Block(2, 1, 0.25))
        Traceback (most recent call last):
        gossamer.errors.StructureError: the structure keeps a part of the 2x1 tile at [0, 1]; \
pattern block 2x1 25% keeps or drops a tile as one: choose a pattern with smaller tiles
    """
    if isinstance(pattern, Block):
        _check_tiles(structure, pattern)
    elif isinstance(pattern, GroupedNM):
        columns = backend.decode_csr(structure).indices % pattern.m
        rows, groups = structure.layout.rows, structure.layout.cols // pattern.m
        check_choices(columns.view(rows, groups, pattern.n), pattern, "the structure")


def _check_tiles(structure: Structure, pattern: Block) -> None:
    given = structure.layout
    # Each panel is one row of a matrix of panels, and a tile is `high` of its rows.
    layout = Layout(given.panels, given.cols, 1, given.block_cols)
    panels = backend.decode_csr(Structure(layout, structure.indices, structure.indptr))
    high, across = pattern.rows // given.vector, given.cols // pattern.cols
    row = torch.arange(given.panels, device=panels.indptr.device).repeat_interleave(
        panels.indptr.diff()
    )
    tiles = row // high * across + panels.indices // pattern.cols
    tile, kept = torch.unique(tiles, return_counts=True)
    partial = tile[kept != high * pattern.cols]
    if partial.numel():
        first = int(partial[0])
        top, left = first // across * pattern.rows, first % across * pattern.cols
        raise StructureError(
            f"the structure keeps a part of the {pattern.rows}x{pattern.cols} tile at [{top}, "
            f"{left}]; pattern {pattern} keeps or drops a tile as one: choose a pattern with "
            "smaller tiles"
        )
