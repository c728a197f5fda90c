"""Penalties and their proximal operators, on torch tensors, NumPy arrays and sparse weights.

    prox_{s g}(x) = argmin_z  1/2 ||z - x||^2 + s g(z)

A penalty is a value object: what it is (`Lp`, `WGSEF`, ...), how strong, and on which groups. It
computes in compiled code, in place.

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
