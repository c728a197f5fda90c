"""Penalties and their proximal operators, on torch tensors, NumPy arrays and sparse weights.

    prox_{s g}(x) = argmin_z  1/2 ||z - x||^2 + s g(z)

A penalty is a value object: what it is (`Lp`, `WGSEF`, ...), how strong, and on which groups. It
computes in compiled code, in place.

>>> import torch
>>> Lp(p=2 / 3, lam=0.1).prox_(torch.tensor([1.0, 0.1]), step=0.5)
tensor([0.9663, 0.0000])
"""

from gossamer.errors import PenaltyError
from gossamer.prox.groupings import Groups, partition
from gossamer.prox.penalties.base import Penalty
from gossamer.prox.penalties.concave import MCP, SCAD, CappedL1, LogSum, TransformedL1
from gossamer.prox.penalties.constraints import L1Ball, Simplex, TopK
from gossamer.prox.penalties.registry import parse_penalty
from gossamer.prox.penalties.separable import L0, L1, ElasticNet, Lp
from gossamer.prox.penalties.structured import L1MinusL2, SparseGroupLasso
from gossamer.prox.penalties.wgsef import WGSEF

__all__ = [
    "L0",
    "L1",
    "MCP",
    "SCAD",
    "WGSEF",
    "CappedL1",
    "ElasticNet",
    "Groups",
    "L1Ball",
    "L1MinusL2",
    "LogSum",
    "Lp",
    "Penalty",
    "PenaltyError",
    "Simplex",
    "SparseGroupLasso",
    "TopK",
    "TransformedL1",
    "parse_penalty",
    "partition",
]
