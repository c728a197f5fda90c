"""Patterns: which entries of a weight may be kept. Value objects without torch.

A weight is `[out_features, in_features]`. `NM` keeps n of every m consecutive columns; `GroupedNM`
also uses every choice of columns equally often; `Unstructured` and `Block` keep the best entries or
tiles; `Butterfly` keeps blocks of a grid; `Nonzeros` keeps what is not zero in a dense weight. With
`vector` = V, V consecutive rows share their columns. `gossamer.masks` selects entries.

A `Pattern` of one's own is a subclass; `register_pattern`, `register_sparsifier` and
`register_operator` make it known.
"""

# Other modules of the package use these; they are not public.
from gossamer.patterns.butterfly import Butterfly
from gossamer.patterns.checks import MAX_M as MAX_M
from gossamer.patterns.checks import as_integer as as_integer
from gossamer.patterns.checks import check_sizes as check_sizes
from gossamer.patterns.checks import unit_interval as unit_interval
from gossamer.patterns.entries import Block, Nonzeros, Unstructured
from gossamer.patterns.groups import NM, GroupedNM
from gossamer.patterns.protocol import PLUGIN as PLUGIN
from gossamer.patterns.protocol import Pattern
from gossamer.patterns.registry import OPERATORS as OPERATORS
from gossamer.patterns.registry import operator_of as operator_of
from gossamer.patterns.registry import pattern_of_code as pattern_of_code
from gossamer.patterns.registry import pattern_of_fields as pattern_of_fields
from gossamer.patterns.registry import plain_fields as plain_fields
from gossamer.patterns.registry import (
    register_operator,
    register_pattern,
    register_sparsifier,
)
from gossamer.patterns.registry import score_of as score_of
from gossamer.patterns.registry import selection_of as selection_of
from gossamer.patterns.registry import unknown_kind as unknown_kind
from gossamer.patterns.text import parse_pattern

__all__ = [
    "NM",
    "Block",
    "Butterfly",
    "GroupedNM",
    "Nonzeros",
    "Pattern",
    "Unstructured",
    "parse_pattern",
    "register_operator",
    "register_pattern",
    "register_sparsifier",
]
