"""The descriptor of a sparse weight: eight integers for pattern and layout.

The state dict stores it, so that a file names the pattern that it holds, and that indices which are
not those that were saved are noticed.
"""

import struct

import torch
from torch import Tensor

from gossamer.backend import Layout, Structure
from gossamer.errors import PatternError, StructureError
from gossamer.patterns import NM, Block, GroupedNM, Pattern, Unstructured
from gossamer.weight.guard import checksum_of, has_bytes

_KINDS: tuple[type[Pattern], ...] = (NM, Unstructured, Block, GroupedNM)


def group_of(pattern: Pattern) -> tuple[int, int]:
    """Return n and m of an N:M pattern for the layout; 0 and 0 for any other pattern."""
    return (pattern.n, pattern.m) if isinstance(pattern, NM | GroupedNM) else (0, 0)


def describe(pattern: Pattern, layout: Layout, checksum: int | None = None) -> Tensor:
    """Return [kind, rows, cols, vector, block_cols, a, b, last] as int64.

    Above its lowest 8 bits, kind holds the CRC-32 of indices and indptr; 0 is none, as in files of
    earlier versions and for masks that are selected anew in each forward pass.
    vector is the pattern's, or the rows of a panel of `Block`; the layout follows from the pattern.
    a and b are n and m of N:M or the sizes of a block, else 0. The last number is g if the pattern
    has one, else the bits of the sparsity as float64.
    """
    a, b = group_of(pattern)
    bits = 0
    if isinstance(pattern, Block):
        a, b = pattern.rows, pattern.cols
    if isinstance(pattern, GroupedNM):
        bits = pattern.g
    elif not isinstance(pattern, NM):
        (bits,) = struct.unpack("<q", struct.pack("<d", pattern.sparsity))
    vector = pattern.panel if isinstance(pattern, Block) else pattern.vector
    kind = _KINDS.index(type(pattern)) + ((checksum or 0) << 8)
    return torch.tensor([kind, layout.rows, layout.cols, vector, layout.block_cols, a, b, bits])


def pattern_of(descriptor: list[int]) -> Pattern:
    """Return the pattern of a descriptor.

    Raises:
        PatternError: the descriptor describes no known pattern.
    """
    if len(descriptor) != 8:
        raise PatternError(f"a descriptor of {len(descriptor)} numbers was given; 8 are needed")
    kind, _, _, vector, _, a, b, bits = descriptor
    kind = kind & 0xFF if 0 <= kind >> 8 < 2**32 else kind
    (sparsity,) = struct.unpack("<d", struct.pack("<q", bits))
    if kind == 0:
        return NM(a, b, vector)
    if kind == 1:
        return Unstructured(sparsity, vector)
    if kind == 2:
        return Block(a, b, sparsity)
    if kind == 3:
        return GroupedNM(a, b, bits)
    raise PatternError(f"pattern kind {kind} was given; 0, 1, 2 and 3 are known")


def read(descriptor: Tensor) -> tuple[Pattern, Layout]:
    """Return the pattern and the layout of a descriptor.

    Raises:
        PatternError: the descriptor describes no known pattern.
    """
    numbers = descriptor.tolist()
    pattern = pattern_of(numbers)
    rows, cols, _, block_cols = numbers[1:5]
    return pattern, Layout(rows, cols, pattern.panel, block_cols, *group_of(pattern))


def check(descriptor: Tensor, structure: Structure) -> None:
    """Raise StructureError if a structure is not the one that a descriptor was saved with."""
    saved = int(descriptor.flatten()[0]) >> 8
    if saved and all(map(has_bytes, structure[1:])) and saved != checksum_of(structure[1:]):
        raise StructureError(
            "the indices are not those that the descriptor was saved with (their checksums "
            "differ): the state is damaged, or put together from two; use another copy"
        )
