"""One penalty of each class, and some on groups, for tensors of shape [3, 4]."""

from __future__ import annotations

import torch

from gossamer.prox import (
    L0,
    L1,
    MCP,
    SCAD,
    WGSEF,
    CappedL1,
    ElasticNet,
    L1Ball,
    L1MinusL2,
    LogSum,
    Lp,
    Penalty,
    Simplex,
    SparseGroupLasso,
    TopK,
    TransformedL1,
)

ONE_OF_EACH: list[Penalty] = [
    L1(0.3),
    L1(0.3, weights=torch.arange(12.0)),
    ElasticNet(0.3, rho=0.4),
    L0(0.3),
    Lp(p=0.5, lam=0.3),
    MCP(0.3, gamma=2.5),
    SCAD(0.3, gamma=3.5),
    CappedL1(0.3, t=0.8),
    TransformedL1(0.3, a=1.0),
    LogSum(0.3, eps=0.8),
    SparseGroupLasso(0.2, group_lam=0.3),
    L1MinusL2(0.3, alpha=0.7),
    WGSEF(2, 0.3, groups="input"),
    WGSEF(2.0, 0.3, groups="input", unbiased=True),
    TopK(5),
    L1Ball(2.0),
    Simplex(2.0),
]
GROUPED: list[Penalty] = [
    L1(0.6, groups="neuron"),
    L1(0.6, weights=[0.1, 1.0, 2.0], groups="neuron"),
    Lp(p=0.5, lam=0.6, groups="neuron"),
    MCP(0.6, gamma=2.5, groups="input"),
    LogSum(0.6, eps=0.8, groups="layer"),
    TopK(2, groups="neuron"),
    L1Ball(2.0, groups="neuron"),
    WGSEF(2, 0.3, groups="neuron", d=[0.5, 1.0, 2.0], c=[1.0, 2.0, 0.7]),
]


def name(penalty: Penalty) -> str:
    return f"{type(penalty).__name__}-{penalty.groups}"


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)
