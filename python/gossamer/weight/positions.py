"""The positions of the entries of a new mask, in each form in which it may be given."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from gossamer import backend
from gossamer.backend import Structure
from gossamer.errors import StructureError
from gossamer.masks import check_mask, check_structure
from gossamer.patterns import Pattern
from gossamer.weight.checks import check_like
from gossamer.weight.formats import Shape, csr_of_positions, refusals


class HasStructure(Protocol):
    """What keeps entries, as a `SparseWeight` or a `MaskedLinear`."""

    @property
    def structure(self) -> Structure:
        """The positions of the kept entries."""


Positions = Tensor | Structure | HasStructure | tuple[Any, Any]
"""A bool mask [rows, cols], a structure, what has one, or the coordinates (rows, cols)."""


def check_fit(structure: Structure, pattern: Pattern, nvalues: int | None = None) -> None:
    """Raise StructureError unless a structure is valid and obeys a pattern.

    Args:
        structure: the structure.
        pattern: the pattern.
        nvalues: number of values that belong to it, if known.
    """
    layout = structure.layout
    backend.validate(structure, nvalues)
    if layout.vector != pattern.panel or (layout.n, layout.m) != pattern.group:
        raise StructureError(
            f"the structure has vector={layout.vector}, n:m={layout.n}:{layout.m}, which is "
            f"not pattern {pattern}; encode the mask with the pattern's own panel, n and m"
        )
    check_structure(structure, pattern)
    if structure.nnz != (needed := pattern.count(layout.rows, layout.cols)):
        raise StructureError(
            f"the structure keeps {structure.nnz} entries, pattern {pattern} needs {needed}"
        )


def structure_of(given: Positions, pattern: Pattern, shape: torch.Size) -> Structure:
    """Return the structure of a mask that obeys a pattern.

    Args:
        given: the mask: bool [rows, cols]; a structure, or what has one; or the integer
            coordinates (rows, cols) of the entries, each once, in any order.
        pattern: the pattern that the mask must obey.
        shape: (rows, cols) of the weight.

    Raises:
        StructureError: the mask does not obey the pattern, or a coordinate is outside the weight
            or given twice; the message names the first one.
        ShapeError, DTypeError: `given` has another shape or dtype.
    """
    structure = getattr(given, "structure", given)
    if isinstance(structure, Structure):
        sizes = (structure.layout.rows, structure.layout.cols)
        if sizes != tuple(shape):
            raise StructureError(
                f"a structure of {sizes[0]}x{sizes[1]} was given for a weight of "
                f"{shape[0]}x{shape[1]}; give one of the weight's shape"
            )
        check_fit(structure, pattern)
        return structure
    if isinstance(given, tuple) and len(given) == 2:
        return _of_coordinates(*given, pattern, (shape[0], shape[1]))
    mask: Any = given
    check_like(mask, "mask", shape)
    check_mask(mask, pattern)
    return backend.encode(mask, pattern.panel, *pattern.group)


def _of_coordinates(rows: Any, cols: Any, pattern: Pattern, shape: Shape) -> Structure:
    who = "coordinates of a mask"
    with refusals(who):
        indptr, columns = csr_of_positions(rows, cols, shape)
        structure, _ = backend.encode_csr(shape, indptr, columns, pattern.panel, *pattern.group)
        check_fit(structure, pattern)
    return structure
