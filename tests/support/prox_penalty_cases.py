"""One penalty of each class, and some on groups, for tensors of shape [3, 4]."""

from __future__ import annotations

import torch

from gossamer.prox import (
    L1,
    MCP,
    SCAD,
    SLOPE,
    WGSEF,
    Box,
    L1Ball,
    L1MinusL2,
    L2Ball,
    LogSum,
    Lp,
    NuclearNorm,
    Penalty,
    Simplex,
    SparseGroupLasso,
    TopK,
    TotalVariation,
)
from gossamer.prox.penalties.registry import PENALTIES
from support.prox_oracle import ROWS

ONE_OF_EACH: list[Penalty] = [
    *(PENALTIES[name](lam=0.3, **row.example) for name, row in ROWS.items()),
    L1(0.3, weights=torch.arange(12.0)),
    *(
        PENALTIES[name](lam=0.3, **row.example, weights=[[0.0, 0.5, 1.0, 3.0]], positive=True)
        for name, row in ROWS.items()
    ),
    SparseGroupLasso(0.2, group_lam=0.3),
    SparseGroupLasso(0.2, group_lam=0.3, weights=[0.0, 1.0, 2.0], positive=True),
    L1MinusL2(0.3, alpha=0.7),
    WGSEF(0.3, 2, groups="input"),
    WGSEF(0.3, 2.0, groups="input", unbiased=True),
    TopK(5),
    L1Ball(2.0),
    L2Ball(2.0),
    Box(-0.5, 1.0),
    Box(),
    Simplex(2.0),
    SLOPE(0.3),
    SLOPE(0.5, sequence=torch.linspace(2, 0, 12)),
    TotalVariation(0.3),
    NuclearNorm(0.5),
]
GROUPED: list[Penalty] = [
    L1(0.6, groups="neuron"),
    L1(0.6, weights=[0.1, 1.0, 2.0], groups="neuron"),
    Lp(lam=0.6, p=0.5, groups="neuron"),
    MCP(0.6, gamma=2.5, groups="input"),
    LogSum(0.6, eps=0.8, groups="layer"),
    L1(0.6, weights=[0.1, 1.0, 2.0], groups="neuron", positive=True),
    SCAD(0.6, gamma=3.0, weights=[0.0, 1.0, 2.0, 9.0], groups="input", positive=True),
    L2Ball(1.5, groups="neuron"),
    Simplex(2.0, groups="input"),
    SLOPE(0.6, sequence=[2.0, 1.0, 0.5], groups="neuron"),
    TotalVariation(0.3, groups="neuron"),
    TotalVariation(0.3, groups="input"),
    TotalVariation(0.3, groups=[[3, 0, 7], [1, 2, 4, 5, 6], [8, 9, 10, 11]]),
    TopK(2, groups="neuron"),
    L1Ball(2.0, groups="neuron"),
    WGSEF(0.3, 2, groups="neuron", d=[0.5, 1.0, 2.0], c=[1.0, 2.0, 0.7]),
]


def name(penalty: Penalty) -> str:
    given = vars(penalty)
    more = ["weights"] * (given.get("weights") is not None) + ["positive"] * penalty._positive
    return "-".join([type(penalty).__name__, str(penalty.groups), *more])


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)
