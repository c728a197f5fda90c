"""The descriptor of a sparse weight: integers for pattern and layout, eight for the package's own.

The state dict stores it, so that a file names the pattern that it holds, and that indices which are
not those that were saved are noticed.
"""

import torch
from torch import Tensor

from gossamer.backend import Layout, Structure
from gossamer.errors import PatternError, StructureError
from gossamer.patterns import PLUGIN, Pattern, pattern_of_code
from gossamer.weight.guard import checksum_of, has_bytes


def describe(pattern: Pattern, layout: Layout, checksum: int | None = None) -> Tensor:
    """Return [kind, rows, cols, vector, block_cols, a, b, last, …] as int64.

    Above its lowest 8 bits, kind holds the CRC-32 of indices and indptr; 0 is none, as in files of
    earlier versions and for masks that are selected anew in each forward pass.
    vector is the pattern's, or the rows of a panel of `Block`; the layout follows from the pattern.
    a and b are n and m of N:M or the sizes of a block, else 0. The last number is g if the pattern
    has one, else the bits of the sparsity as float64. A pattern from outside the package has kind
    255: a and b are its `group`, then come the length of a JSON text with its name and fields, and
    the text, 8 bytes in each number.
    """
    kind = pattern.code + ((checksum or 0) << 8)
    vector, *rest = pattern.numbers
    return torch.tensor([kind, layout.rows, layout.cols, vector, layout.block_cols, *rest])


def pattern_of(descriptor: list[int]) -> Pattern:
    """Return the pattern of a descriptor.

    Raises:
        PatternError: the descriptor describes no known pattern.
    """
    if len(descriptor) < 8:
        raise PatternError(f"a descriptor of {len(descriptor)} numbers was given; 8 are needed")
    kind, _, _, vector, _, *rest = descriptor
    kind = kind & 0xFF if 0 <= kind >> 8 < 2**32 else kind
    pattern = pattern_of_code(kind, (vector, *rest))
    own = (pattern.panel, *pattern.group)
    if (kind == PLUGIN and own != (vector, *rest[:2])) or (kind != PLUGIN and len(rest) != 3):
        raise PatternError(f"the descriptor of {pattern} has {len(descriptor)} numbers: damaged")
    return pattern


def read(descriptor: Tensor) -> tuple[Pattern, Layout]:
    """Return the pattern and the layout of a descriptor.

    Raises:
        PatternError: the descriptor describes no known pattern.
    """
    numbers = descriptor.tolist()
    pattern = pattern_of(numbers)
    rows, cols, _, block_cols = numbers[1:5]
    return pattern, Layout(rows, cols, pattern.panel, block_cols, *pattern.group)


def check(descriptor: Tensor, structure: Structure) -> None:
    """Raise StructureError if a structure is not the one that a descriptor was saved with."""
    saved = int(descriptor.flatten()[0]) >> 8
    if saved and all(map(has_bytes, structure[1:])) and saved != checksum_of(structure[1:]):
        raise StructureError(
            "the indices are not those that the descriptor was saved with (their checksums "
            "differ): the state is damaged, or put together from two; use another copy"
        )
