"""The feed-forward network of sparse activations by its formula, and inputs of a live share."""

import torch
from torch import Tensor

from gossamer.activations import Weights
from gossamer.backend.activations import Pairs


def make(
    tokens: int,
    d: int,
    hidden: int,
    share: float,
    skew: bool = False,
    gated: bool = True,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Weights]:
    """Weights and inputs whose gate is positive at about the wanted share of pairs.

    An eighth of x's columns are 1, and the gate's weights there add up to a threshold a neuron. So
    live pairs are what a gate gives, with one share for all neurons, or shares like 1 / rank.
    """
    n = max(1, d // 8)
    x = torch.randn(tokens, d, dtype=torch.float64)
    x[:, :n] = 1.0
    gate = torch.randn(hidden, d, dtype=torch.float64) / d**0.5
    gate[:, :n] = 0.0
    wanted = torch.full((hidden,), share, dtype=torch.float64)
    if skew:
        wanted = (1.0 / (torch.randperm(hidden) + 1.0)).double()
        wanted = (wanted * (share / wanted.mean())).clamp(max=1.0)
    count = (wanted * tokens + torch.rand(hidden, dtype=torch.float64)).floor().long()
    count = count.clamp(0, tokens) * (share > 0)
    order = (x @ gate.t()).sort(0, descending=True).values
    order = torch.cat([order[:1] + 1, order, order[-1:] - 1])
    at = count[None]
    gate[:, :n] = -((order.gather(0, at) + order.gather(0, at + 1)) / 2).t() / n
    up = torch.randn(hidden, d, dtype=torch.float64) / d**0.5 if gated else None
    down = torch.randn(hidden, d, dtype=torch.float64) / hidden**0.5
    weights = Weights(gate.to(dtype), None if up is None else up.to(dtype), down.to(dtype))
    return x.to(dtype), weights


def with_biases(weights: Weights, dtype: torch.dtype) -> Weights:
    """The weights, with small biases of the dtype."""
    hidden, d = weights.gate.shape
    return weights._replace(
        gate_bias=0.1 * torch.randn(hidden, dtype=dtype),
        up_bias=None if weights.up is None else torch.randn(hidden, dtype=dtype),
        down_bias=torch.randn(d, dtype=dtype),
    )


def network(
    x: Tensor, weights: Weights, live: Tensor, activation: str = "relu"
) -> tuple[Tensor, Tensor]:
    """y and h by the formula, h zero where `live` [tokens, hidden] is not."""
    g = x @ weights.gate.t()
    if weights.gate_bias is not None:
        g = g + weights.gate_bias
    h = torch.where(live, g, torch.zeros((), dtype=g.dtype))
    if activation == "relu2":
        h = h.square()
    if weights.up is not None:
        u = x @ weights.up.t()
        h = h * (u if weights.up_bias is None else u + weights.up_bias)
    y = h @ weights.down
    return (y if weights.down_bias is None else y + weights.down_bias), h


def pairs_of(live: Tensor, tile: int) -> Pairs:
    """The pairs of a mask [tokens, hidden]."""
    batch, hidden = live.shape
    counts, tokens = [], []
    for start in range(0, batch, tile):
        part = live[start : start + tile].t()
        counts.append(part.sum(1))
        tokens.append(part.nonzero()[:, 1] + start)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(counts).cumsum(0)])
    return Pairs(indptr, torch.cat(tokens).int(), hidden, batch, tile)


def mask_of(pairs: Pairs) -> Tensor:
    """The mask [tokens, hidden] of pairs."""
    live = torch.zeros(pairs.batch, pairs.neurons, dtype=torch.bool)
    rows = torch.arange(len(pairs.indptr) - 1).repeat_interleave(pairs.indptr.diff())
    live[pairs.tokens.long(), rows % pairs.neurons] = True
    return live
