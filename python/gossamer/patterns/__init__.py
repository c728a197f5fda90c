"""Patterns: which entries of a weight may be kept. Value objects without torch.

A weight is `[out_features, in_features]`. `NM` keeps n of every m consecutive columns; `GroupedNM`
also uses every choice of columns equally often; `Unstructured` and `Block` keep the best entries or
tiles; `Nonzeros` keeps what is not zero in a dense weight. With `vector` = V, V consecutive rows
share their columns. `gossamer.masks` selects entries.
"""

# Other modules of the package use these; they are not public.
from gossamer.patterns.checks import MAX_M as MAX_M
from gossamer.patterns.checks import as_integer as as_integer
from gossamer.patterns.checks import check_sizes as check_sizes
from gossamer.patterns.checks import unit_interval as unit_interval
from gossamer.patterns.entries import Block, Nonzeros, Unstructured
from gossamer.patterns.groups import NM, GroupedNM
from gossamer.patterns.text import Pattern, parse_pattern

__all__ = [
    "NM",
    "Block",
    "GroupedNM",
    "Nonzeros",
    "Pattern",
    "Unstructured",
    "parse_pattern",
]
