"""Layers that replace a dense layer by larger sparse layers of the same cost.

    Branches   k sparse layers of the same sizes, summed
    Factors    two sparse layers in sequence
    Doped      one sparse layer plus a dense layer of low rank

The weights are drawn again and scaled so that the initial outputs have the variance of the dense
layer's. See `gossamer.recipes.SparseIFT`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.nn.layers.linear import SparseLinear
from gossamer.patterns import Pattern

NONLINEARITIES = {"none": None, "relu": F.relu, "gelu": F.gelu}


class Branches(nn.Module):
    """The sum of sparse layers of the same sizes, each through a non-linearity.

    Args:
        linear: the dense layer to replace; its sizes, dtype and bias are used.
        pattern: pattern of each branch.
        branches: number of branches.
        nonlinearity: "none", "relu" or "gelu".
    """

    bias: nn.Parameter | None

    def __init__(
        self, linear: nn.Module, pattern: Pattern, branches: int, nonlinearity: str
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, dtype = sizes(linear)
        self.nonlinearity = nonlinearity
        self.branches = nn.ModuleList(
            SparseLinear(self.in_features, self.out_features, False, pattern=pattern, dtype=dtype)
            for _ in range(branches)
        )
        for branch in self.branches:
            set_gain(branch, gain(linear.weight) / math.sqrt(branches))  # type: ignore[arg-type]
        self.bias = linear.bias  # type: ignore[assignment]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear has
        """Map input [..., in_features] to [..., out_features]."""
        act = NONLINEARITIES[self.nonlinearity]
        parts = [branch(input) for branch in self.branches]
        y: Tensor = sum(parts if act is None else [act(part) for part in parts])  # type: ignore[assignment]
        return y if self.bias is None else y + self.bias


class Factors(nn.Module):
    """Two sparse layers in sequence: U (V x).

    Args:
        linear: the dense layer to replace; its sizes, dtype and bias are used.
        pattern: pattern of both factors.
        rank: size between the factors.
        nonlinearity: function between the factors; "none", "relu" or "gelu".
    """

    def __init__(self, linear: nn.Module, pattern: Pattern, rank: int, nonlinearity: str) -> None:
        super().__init__()
        self.in_features, self.out_features, dtype = sizes(linear)
        self.nonlinearity = nonlinearity
        self.down = SparseLinear(self.in_features, rank, False, pattern=pattern, dtype=dtype)
        self.up = SparseLinear(rank, self.out_features, False, pattern=pattern, dtype=dtype)
        set_gain(self.down, 1.0)
        set_gain(self.up, gain(linear.weight))  # type: ignore[arg-type]
        self.up.bias = linear.bias  # type: ignore[assignment]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear has
        """Map input [..., in_features] to [..., out_features]."""
        act = NONLINEARITIES[self.nonlinearity]
        hidden = self.down(input)
        y: Tensor = self.up(hidden if act is None else act(hidden))
        return y


class Doped(nn.Module):
    """The sum of a sparse layer and a dense layer of low rank.

    Args:
        linear: the dense layer to replace; its sizes, dtype and bias are used.
        pattern: pattern of the sparse part.
        rank: rank of the dense part.
    """

    def __init__(self, linear: nn.Module, pattern: Pattern, rank: int) -> None:
        super().__init__()
        self.in_features, self.out_features, dtype = sizes(linear)
        self.sparse = SparseLinear(
            self.in_features, self.out_features, False, pattern=pattern, dtype=dtype
        )
        self.sparse.bias = linear.bias  # type: ignore[assignment]
        self.down = nn.Linear(self.in_features, rank, False, dtype=dtype)
        self.up = nn.Linear(rank, self.out_features, False, dtype=dtype)
        half = gain(linear.weight) * math.sqrt(0.5)  # type: ignore[arg-type]
        for part, size in ((self.down, 1.0), (self.up, half), (self.sparse, half)):
            set_gain(part, size)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear has
        """Map input [..., in_features] to [..., out_features]."""
        y: Tensor = self.sparse(input) + self.up(self.down(input))
        return y


def sizes(linear: nn.Module) -> tuple[int, int, torch.dtype]:
    """Return in_features, out_features and dtype of an `nn.Linear` or `Conv1D`."""
    weight: Tensor = linear.weight  # type: ignore[assignment]
    rows, cols = weight.shape if isinstance(linear, nn.Linear) else weight.shape[::-1]
    return cols, rows, weight.dtype


@torch.no_grad()
def gain(weight: Tensor) -> float:
    """Return the factor by which a matrix [out, in] scales the deviation of independent inputs."""
    return float(weight.double().norm()) / math.sqrt(max(weight.shape[0], 1))


@torch.no_grad()
def set_gain(layer: SparseLinear | nn.Linear, size: float) -> None:
    """Scale a layer's new weights to this gain."""
    if isinstance(layer, nn.Linear):
        layer.weight.mul_(size / gain(layer.weight))
        return
    values = layer.weight.values
    now = float(values.double().norm()) / math.sqrt(max(layer.out_features, 1))
    values.mul_(size / now)
    layer.weight.refresh_transpose()


__all__ = ["NONLINEARITIES", "Branches", "Doped", "Factors", "gain", "set_gain", "sizes"]
