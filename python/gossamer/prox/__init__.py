"""Penalties and their proximal operators, on torch tensors, NumPy arrays and sparse weights.

    prox_{s g}(x) = argmin_z  1/2 ||z - x||^2 + s g(z)

A penalty is an immutable object with a kind (`Lp`, `WGSEF`, ...), a strength and a grouping of the
entries. Its operator is compiled and works in place.

Example:
    >>> import torch
    >>> Lp(0.1, p=2 / 3).prox_(torch.tensor([1.0, 0.1]), step=0.5)
    tensor([0.9663, 0.0000])
"""

from gossamer.errors import PenaltyError as PenaltyError
from gossamer.prox import path_norm as path_norm
from gossamer.prox.groupings import Groups as Groups
from gossamer.prox.groupings import partition as partition
from gossamer.prox.operators import wgsef_gains as wgsef_gains
from gossamer.prox.penalties import *  # noqa: F403  (the classes that the families export)
from gossamer.prox.penalties.base import Penalty as Penalty
from gossamer.prox.penalties.registry import parse_penalty as parse_penalty
