"""Whether a structure obeys the part of its pattern that its layout cannot express."""

from gossamer import backend
from gossamer.arguments import check
from gossamer.backend import Structure
from gossamer.backend.structure import check_tiles
from gossamer.masks.grouped import check_choices
from gossamer.masks.selection import is_own, obeys
from gossamer.patterns import GroupedNM, Pattern

__all__ = ["check_structure"]


def check_structure(structure: Structure, pattern: Pattern) -> None:
    """Raise StructureError unless tiles are whole, choices balanced, and others' selections agree.

    The rows of a panel, n of every m and the number of entries belong to the layout, and are not
    checked here: tiles are, if they are wider than a column or higher than a panel. Time and memory
    are those of the entries; of a pattern from outside the package, those of the weight.

    Example:
        >>> import gossamer, torch
        >>> structure = backend.encode(torch.tensor([[True, False], [True, True]]), vector=1)
        >>> check_structure(structure, gossamer.Block(2, 1, 0.25))
        Traceback (most recent call last):
        gossamer.errors.StructureError: a part of the 2x1 tile at [0, 1] is kept, [1, 1] and not \
[0, 1]; a tile is kept or dropped as one
    """
    check(check_structure, locals())
    if pattern.tile != (structure.layout.vector, 1):
        check_tiles(structure, *pattern.tile)
    if isinstance(pattern, GroupedNM):
        columns = backend.decode_csr(structure).indices % pattern.m
        rows, groups = structure.layout.rows, structure.layout.cols // pattern.m
        check_choices(columns.view(rows, groups, pattern.n), pattern, "the structure")
    elif not is_own(pattern):
        high, wide = pattern.tile
        obeys(backend.mask(structure)[::high, ::wide], pattern, "the structure")
