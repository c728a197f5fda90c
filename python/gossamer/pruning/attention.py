"""Attention with fused query, key and value, and the removal of its dead heads.

A head is dead if the columns of the output projection that read it are zero, or if its value rows
are zero. In the second case the head's output is its value bias, because a softmax sums to 1; this
constant moves into the bias of the projection.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.arguments import check


class HeadAttention(nn.Module):
    """Self-attention whose number of heads does not depend on the width of the input.

    `shrink` replaces an attention that lost heads by this module, with the same parameter names,
    `qkv` and `out`.

    Args:
        qkv: `[width] -> [3 * heads * size]`, rows ordered query, key, value, each by head.
        out: `[heads * size] -> [width]`.
        heads: number of heads.
        causal: each position attends to itself and earlier positions only.

    Example:
        >>> HeadAttention(nn.Linear(8, 12), nn.Linear(4, 8), 2, True)(torch.ones(1, 3, 8)).shape
        torch.Size([1, 3, 8])
    """

    def __init__(self, qkv: nn.Linear, out: nn.Linear, heads: int, causal: bool) -> None:
        super().__init__()
        check(HeadAttention.__init__, locals())
        self.heads, self.causal = heads, causal
        self.qkv, self.out = qkv, out

    def forward(self, x: Tensor) -> Tensor:
        """Return the attention of x [batch, length, width], in the same shape."""
        batch, length, _ = x.shape
        parts: Tensor = self.qkv(x).view(batch, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class FusedHeads:
    """The number of heads of an attention module, and whether it is causal."""

    heads: int
    causal: bool


def recognise(module: nn.Module, x: object) -> FusedHeads | None:
    """Recognise an attention like `HeadAttention`, with exactly `heads`, `qkv` and `out`.

    Names are not enough: a copy with random weights must give the output of `HeadAttention` on
    random input of x's shape, in evaluation and in training (which excludes a dropout).

    Args:
        module: any module.
        x: the argument of its forward.

    Returns:
        The heads, or None if the module is not such an attention.
    """
    heads, qkv, out = (getattr(module, name, None) for name in ("heads", "qkv", "out"))
    if (
        not isinstance(heads, int)
        or type(qkv) is not nn.Linear
        or type(out) is not nn.Linear
        or dict(module.named_children()).keys() != {"qkv", "out"}
        or any(True for _ in module.parameters(recurse=False))
        or qkv.out_features != 3 * out.in_features
        or heads < 1
        or out.in_features % heads
        or not isinstance(x, Tensor)
        or x.dim() != 3
    ):
        return None
    twin = copy.deepcopy(module)
    # A generator of its own: the check must not change torch's random state.
    generator = torch.Generator().manual_seed(0)
    for parameter in twin.parameters():
        drawn = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
        parameter.data = drawn.to(parameter)
    length = max(x.shape[1], 4)  # causality shows only with several positions
    probe = torch.randn(2, length, qkv.in_features, generator=generator).to(x)
    with torch.no_grad():
        try:
            found = [twin.train(mode)(probe) for mode in (True, False)]
        except Exception:  # a forward may raise anything on another length
            return None
        for causal in (True, False):
            expected = HeadAttention(twin.qkv, twin.out, heads, causal)(probe)  # type: ignore[arg-type]
            if all(_close(y, expected) for y in found):
                return FusedHeads(heads, causal)
    return None


def without_dead_heads(module: nn.Module, known: FusedHeads) -> HeadAttention | None:
    """Return the attention without its dead heads, or None when no head is dead.

    At least one head is kept.

    Args:
        module: a recognised attention; it does not change.
        known: the result of `recognise`.
    """
    qkv: nn.Linear = module.qkv  # type: ignore[assignment]
    out: nn.Linear = module.out  # type: ignore[assignment]
    heads, size = known.heads, out.in_features // known.heads
    rows = qkv.weight.detach().view(3, heads, size, -1)
    columns = out.weight.detach().view(-1, heads, size)
    unread = ~(columns != 0).any(2).any(0)
    constant = ~(rows[2] != 0).any(2).any(1)
    alive = ~(unread | constant)
    if bool(alive.all()):
        return None
    alive[0] |= not bool(alive.any())

    fewer = with_heads(module, known, alive)
    if qkv.bias is not None:
        values = qkv.bias.detach().view(3, heads, size)[2]
        gone = values * (constant & ~alive)[:, None]
        folded = torch.einsum("whs,hs->w", columns.double(), gone.double())
        if bool(folded.any()):
            trained = out.weight.requires_grad
            if out.bias is not None:
                folded, trained = out.bias.detach().double() + folded, out.bias.requires_grad
            fewer.out.bias = nn.Parameter(folded.to(columns.dtype), trained)
    return fewer


def with_heads(module: nn.Module, known: FusedHeads, keep: Tensor) -> HeadAttention:
    """Return the attention with some of its heads; what the others add is lost.

    Args:
        module: a recognised attention; it does not change.
        known: the result of `recognise`.
        keep: bool [heads].
    """
    qkv: nn.Linear = module.qkv  # type: ignore[assignment]
    out: nn.Linear = module.out  # type: ignore[assignment]
    heads, size = known.heads, out.in_features // known.heads
    keep = keep.to(qkv.weight.device)
    rows = qkv.weight.detach().view(3, heads, size, -1)[:, keep].flatten(0, 2)
    bias = None
    if qkv.bias is not None:
        bias = qkv.bias.detach().view(3, heads, size)[:, keep].flatten()
    columns = out.weight.detach().view(-1, heads, size)[:, keep].flatten(1)
    return HeadAttention(
        _linear(rows, bias, qkv),
        _linear(columns, None if out.bias is None else out.bias.detach(), out),
        int(keep.sum()),
        known.causal,
    ).train(module.training)


def _close(found: object, expected: Tensor) -> bool:
    return (
        isinstance(found, Tensor)
        and found.shape == expected.shape
        and torch.allclose(found, expected, 1e-4, 1e-5)
    )


def _linear(weight: Tensor, bias: Tensor | None, like: nn.Linear) -> nn.Linear:
    trained = like.weight.requires_grad
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.clone(), trained)
    if bias is not None:
        trained = trained if like.bias is None else like.bias.requires_grad
        linear.bias = nn.Parameter(bias.clone(), trained)
    return linear.train(like.training)
