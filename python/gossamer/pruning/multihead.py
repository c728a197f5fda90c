"""torch's multi-head attention with fewer heads than its width has room for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.arguments import Share, Size, check
from gossamer.backend import check_array
from gossamer.backend.arrays import FLOATING
from gossamer.errors import ShapeError


class FewerHeads(nn.Module):
    """`nn.MultiheadAttention` whose heads keep their size when others are removed.

    It has the same parameters by name, `in_proj_weight`, `in_proj_bias` and `out_proj`, and the
    same arguments and results. torch's module needs heads that fill its whole width.

    Args:
        embed_dim: width of query, key, value and result.
        num_heads: number of heads.
        head_dim: size of a head.
        bias: whether the projections have biases.
        dropout: share of the attention weights that training drops.
        batch_first: whether the batch is the first axis, else the second.

    Example:
        >>> x = torch.ones(1, 5, 8)
        >>> FewerHeads(8, num_heads=1, head_dim=4)(x, x, x)[0].shape
        torch.Size([1, 5, 8])
    """

    # torch's encoder layers ask for it, and then do not take their fused kernel.
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: Size,
        num_heads: Size,
        head_dim: Size,
        *,
        bias: bool = True,
        dropout: Share = 0.0,
        batch_first: bool = True,
    ) -> None:
        super().__init__()
        check(FewerHeads.__init__, locals())
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, head_dim
        self.dropout, self.batch_first = dropout, batch_first
        width = num_heads * head_dim
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, embed_dim))
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width)) if bias else None
        self.out_proj = nn.Linear(width, embed_dim, bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention and, if asked for, its weights, as `nn.MultiheadAttention` does."""
        if not torch.compiler.is_compiling():
            self._check(query, key, value)
        flat = query.dim() == 2
        order = self.batch_first or flat
        given = [
            x[None] if flat else x if order else x.transpose(0, 1) for x in (query, key, value)
        ]
        weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)
            for x, w, b in zip(given, weights, biases, strict=True)
        )
        mask = self._mask(attn_mask, key_padding_mask, q, flat)
        drop = self.dropout if self.training else 0.0
        shares = None
        if need_weights:
            scores = q @ k.transpose(-1, -2) * self.head_dim**-0.5
            shares = F.dropout((scores if mask is None else scores + mask).softmax(-1), drop)
            mixed = shares @ v
        else:
            causal = is_causal and mask is None
            mixed = F.scaled_dot_product_attention(q, k, v, mask, drop, is_causal=causal)
        result = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if shares is not None and average_attn_weights:
            shares = shares.mean(1)
        if flat:
            return result[0], None if shares is None else shares[0]
        return result if order else result.transpose(0, 1), shares

    def _check(self, *given: Tensor) -> None:
        for name, x in zip(("query", "key", "value"), given, strict=True):
            check_array(x, f"FewerHeads got {name}", dtypes=FLOATING)
        ranks = {x.dim() for x in given}
        if len(ranks) > 1 or ranks - {2, 3} or any(x.shape[-1] != self.embed_dim for x in given):
            shapes = ", ".join(str(list(x.shape)) for x in given)
            raise ShapeError(
                f"FewerHeads got query, key and value of shapes {shapes}; three of [batch, length, "
                f"{self.embed_dim}] or three of [length, {self.embed_dim}] are needed"
            )

    def _mask(
        self, attend: Tensor | None, padding: Tensor | None, query: Tensor, flat: bool
    ) -> Tensor | None:
        """Return the sum of both masks as numbers to add to the scores."""
        total = None
        if attend is not None:
            total = _additive(attend, query)
            if total.dim() == 3:
                batch = len(query)
                if len(total) != batch * self.num_heads:
                    raise ShapeError(
                        f"FewerHeads got attn_mask of shape {list(attend.shape)}; with "
                        f"{self.num_heads} heads and a batch of {batch} a mask per head has "
                        f"{batch * self.num_heads} as its first size: drop the removed heads' part"
                    )
                total = total.view(batch, self.num_heads, *total.shape[1:])
        if padding is not None:
            added = _additive(padding[None] if flat else padding, query)[:, None, None]
            total = added if total is None else total + added
        return total


def fewer_heads(module: nn.MultiheadAttention, keep: Tensor) -> FewerHeads:
    """Return the attention with some of its heads.

    Args:
        module: an attention that `can_lose_heads`; it does not change.
        keep: bool [heads].
    """
    heads, size = module.num_heads, module.embed_dim // module.num_heads
    weight, bias = module.in_proj_weight, module.in_proj_bias
    with torch.device("meta"):
        fewer = FewerHeads(
            module.embed_dim,
            int(keep.sum()),
            size,
            bias=bias is not None,
            dropout=module.dropout,
            batch_first=module.batch_first,
        )
    keep = keep.to(weight.device)
    rows = weight.detach().view(3, heads, size, -1)[:, keep].flatten(0, 2)
    fewer.in_proj_weight = nn.Parameter(rows, weight.requires_grad)
    if bias is not None:
        cut = bias.detach().view(3, heads, size)[:, keep].flatten()
        fewer.in_proj_bias = nn.Parameter(cut, bias.requires_grad)
    out = module.out_proj
    columns = out.weight.detach().view(-1, heads, size)[:, keep].flatten(1)
    fewer.out_proj.weight = nn.Parameter(columns, out.weight.requires_grad)
    if out.bias is not None:
        fewer.out_proj.bias = nn.Parameter(out.bias.detach().clone(), out.bias.requires_grad)
    return fewer.train(module.training)


def can_lose_heads(module: nn.Module) -> bool:
    """Return whether a module is torch's dense attention, of one width and without added keys."""
    return (
        type(module) is nn.MultiheadAttention
        and isinstance(module.in_proj_weight, nn.Parameter)
        and isinstance(module.out_proj.weight, nn.Parameter)
        and module._qkv_same_embed_dim
        and module.bias_k is None
        and not module.add_zero_attn
    )


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape).to(like).masked_fill(mask, -torch.inf)
