"""Patterns: which entries of a weight may be kept. Value objects without torch.

A weight is `[out_features, in_features]`. `NM` keeps n of every m consecutive columns; `GroupedNM`
also uses every choice of columns equally often; `Unstructured` and `Block` keep the best entries or
tiles; `Nonzeros` keeps what is not zero in a dense weight. With `vector` = V, V consecutive rows
share their columns. `gossamer.masks` selects entries.
"""

from gossamer.patterns.checks import MAX_M, as_integer, check_sizes, unit_interval
from gossamer.patterns.entries import Block, Nonzeros, Unstructured
from gossamer.patterns.groups import NM, GroupedNM
from gossamer.patterns.text import Pattern, parse_pattern

__all__ = [
    "MAX_M",
    "NM",
    "Block",
    "GroupedNM",
    "Nonzeros",
    "Pattern",
    "Unstructured",
    "as_integer",
    "check_sizes",
    "parse_pattern",
    "unit_interval",
]
