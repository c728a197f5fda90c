"""What the bench of sparse activations measures: sizes, live shares, both sides' networks.

An eighth of x's columns are 1, and the gate's weights there add up to a threshold a neuron, so that
the wanted share of the gates is positive. Neurons are equally popular, or as Zipf has it: 1 / rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.harness.contest import WrongResultError
from bench.harness.machine import multiplies_bfloat16
from bench.harness.plan import Plan, quick
from bench.harness.training import SEED
from gossamer import SparseLinear
from gossamer.activations import Weights
from gossamer.nn import ActivationSparseFFN


class Size(NamedTuple):
    """Of one network.

    Example:
        >>> str(Size(512, 768, 2048))
        '512x768x2048'
    """

    tokens: int
    d: int
    hidden: int

    def __str__(self) -> str:
        return f"{self.tokens}x{self.d}x{self.hidden}"


class Live(NamedTuple):
    """How many gates are positive.

    Example:
        >>> str(Live(0.05, True))
        '5% Zipf'
    """

    share: float
    zipf: bool = False

    def __str__(self) -> str:
        return f"{100 * self.share:g}% {'Zipf' if self.zipf else 'uniform'}"


_BLOCK = Size(512, 768, 2048)
HALVES = (torch.bfloat16,) if multiplies_bfloat16() else ()


@dataclass(frozen=True)
class Scope:
    """Of the bench.

    Args:
        sizes: of the networks in training.
        block: tokens, width and hidden width of a transformer's block.
        decoding: of the network that decodes; its tokens are those of one call.
        live: shares.
        dtypes: of the weights.
    """

    sizes: tuple[Size, ...] = (Size(512, 768, 2048), Size(1024, 1024, 4096))
    block: Size = _BLOCK
    decoding: tuple[Size, ...] = (Size(1, 2048, 5632), Size(8, 2048, 5632))
    live: tuple[Live, ...] = tuple(
        Live(share, zipf) for share in (0.01, 0.05, 0.1, 0.2) for zipf in (False, True)
    )
    dtypes: tuple[torch.dtype, ...] = (torch.float32, *HALVES)


FULL = Plan(Scope(), seconds=2.0, rounds=(3, 31))
QUICK = quick(
    Scope(
        (Size(64, 32, 64),),
        Size(32, 32, 64),
        (Size(1, 64, 128),),
        (Live(0.05),),
        (torch.float32, torch.bfloat16),
    ),
)


def problem(size: Size, live: Live) -> tuple[Tensor, Weights]:
    """Inputs and weights whose gate is positive at the wanted share of pairs.

    Args:
        size: of the network.
        live: the share.

    Returns:
        x [tokens, d] and the weights [hidden, d], float32.
    """
    random = torch.Generator().manual_seed(SEED)
    tokens, d, hidden = size
    tokens = max(tokens, 256)  # of which a call that decodes takes the first
    n = max(1, d // 8)
    x = torch.randn(tokens, d, generator=random)
    x[:, :n] = 1.0
    gate = torch.randn(hidden, d, generator=random) / d**0.5
    gate[:, :n] = 0.0
    share = torch.full((hidden,), live.share)
    if live.zipf:
        rank = torch.randperm(hidden, generator=random) + 1.0
        low, high = 0.0, 10.0 * hidden
        for _ in range(60):
            middle = (low + high) / 2
            few = float((middle / rank).clamp(max=1).mean()) < live.share
            low, high = (middle, high) if few else (low, middle)
        share = (low / rank).clamp(max=1)
    count = (share * tokens + torch.rand(hidden, generator=random)).floor().long().clamp(0, tokens)
    order = (x @ gate.t()).sort(0, descending=True).values
    order = torch.cat([order[:1] + 1, order, order[-1:] - 1])  # row c + 1 is the c-th largest
    border = (order.gather(0, count[None]) + order.gather(0, count[None] + 1)) / 2
    gate[:, :n] = -border.t() / n
    up = torch.randn(hidden, d, generator=random) / d**0.5
    down = torch.randn(hidden, d, generator=random) / hidden**0.5
    return x, Weights(gate, up, down)


class Dense(nn.Module):
    """The same network by torch: three linear layers and a ReLU."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        assert weights.up is not None
        self.gate = nn.Parameter(weights.gate.clone())
        self.up = nn.Parameter(weights.up.clone())
        self.down = nn.Parameter(weights.down.t().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., d] to [..., d]."""
        h = functional.relu(functional.linear(x, self.gate)) * functional.linear(x, self.up)
        return functional.linear(h, self.down)


class Block(nn.Module):
    """A transformer's block: norms, causal attention, a feed-forward network.

    Args:
        ffn: the network.
        d: width; heads are 64 wide.
        pattern: of the attention's projections; "" for dense ones.
    """

    def __init__(self, ffn: nn.Module, d: int, pattern: str = "") -> None:
        super().__init__()

        def linear(rows: int) -> nn.Module:
            if not pattern:
                return nn.Linear(d, rows, bias=False)
            return SparseLinear(d, rows, bias=False, pattern=pattern)

        self.norms = nn.ModuleList([nn.RMSNorm(d), nn.RMSNorm(d)])
        self.qkv, self.out, self.ffn = linear(3 * d), linear(d), ffn
        self.heads = max(1, d // 64)

    def forward(self, x: Tensor, into: Tensor) -> Tensor:
        """Map [sequences, tokens, d]; `into`, the feed-forward part's input, has its live share."""
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (
            part.view(shape).transpose(1, 2) for part in self.qkv(self.norms[0](x)).chunk(3, dim=-1)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        # Joins both parts' graphs without changing the share.
        out: Tensor = x + self.ffn(into + 0.0 * self.norms[1](x))
        return out


def layers(weights: Weights, dtype: torch.dtype) -> Iterator[tuple[str, ActivationSparseFFN]]:
    """The layer in the form it chooses, and in each sparse form, by name."""
    for form, name in (("auto", "gossamer"), ("float32", "float32 gate"), ("int8", "int8 gate")):
        parts = (None if w is None else nn.Parameter(w.to(dtype)) for w in weights)
        yield name, ActivationSparseFFN.of_parts(Weights(*parts), gate=form)  # type: ignore[arg-type]


def verify(who: str, found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Raise unless a result is right.

    Raises:
        WrongResultError: it differs from the dense network's by more than the tolerance.
    """
    error = float((found.double() - wanted.double()).norm() / wanted.double().norm())
    if not error <= tolerance:
        raise WrongResultError(f"{who} differs from the dense network by {error:.2g}")
