"""The descriptor of a sparse weight: eight integers that say what its indices do not.

It travels with the weight in a state dict, so that a file tells which pattern it holds.
"""

import struct

import torch
from torch import Tensor

from gossamer.backend import Layout
from gossamer.errors import PatternError
from gossamer.patterns import NM, Block, GroupedNM, Pattern, Unstructured

_KINDS: tuple[type[Pattern], ...] = (NM, Unstructured, Block, GroupedNM)


def group_of(pattern: Pattern) -> tuple[int, int]:
    """The n and m of an N:M pattern, 0 and 0 of another: what the layout needs to know."""
    return (pattern.n, pattern.m) if isinstance(pattern, NM | GroupedNM) else (0, 0)


def describe(pattern: Pattern, layout: Layout) -> Tensor:
    """[kind, rows, cols, vector, block_cols, a, b, the bits of the sparsity as float64].

    a, b: n, m of N:M, the sizes of a block, else 0. The last number is g where the pattern has
    one. Everything that the indices do not say.
    """
    a, b = group_of(pattern)
    bits = 0
    if isinstance(pattern, Block):
        a, b = pattern.rows, pattern.cols
    if isinstance(pattern, GroupedNM):
        bits = pattern.g
    elif not isinstance(pattern, NM):
        (bits,) = struct.unpack("<q", struct.pack("<d", pattern.sparsity))
    kind = _KINDS.index(type(pattern))
    return torch.tensor(
        [kind, layout.rows, layout.cols, layout.vector, layout.block_cols, a, b, bits]
    )


def pattern_of(descriptor: list[int]) -> Pattern:
    """The pattern that a descriptor tells of; PatternError when it tells of none."""
    if len(descriptor) != 8:
        raise PatternError(f"a descriptor of {len(descriptor)} numbers was given; it has 8")
    kind, _, _, vector, _, a, b, bits = descriptor
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
