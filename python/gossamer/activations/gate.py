"""The live pairs of a gate x W^T + b: the only product of a sparse feed-forward step that is dense.

Two forms give the same pairs and the same values up to the rounding of float32:

    float32  The product in the dtype of the weights, by torch, in blocks of neurons that are read
             while they are in the cache: no matrix [tokens, neurons] is ever kept.
    int8     The product in int8. With rounded rows x', w' (Cauchy and Schwarz)
             |<x, w> - <x', w'>| <= |x - x'| |w| + |x'| |w - w'|, so a pair whose rounded gate plus
             this bound is not positive is not live. The others get their gate in float32.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gossamer.arguments import check
from gossamer.backend import activations as kernels
from gossamer.backend import check_array
from gossamer.backend.activations import Pairs
from gossamer.backend.arrays import FLOATS
from gossamer.errors import DTypeError, ShapeError

GateForm: TypeAlias = Literal["float32", "int8"]

_TILE = 1024  # tokens whose panels fit the second-level cache
_BLOCK = 1 << 18  # gates of a block: they are read while they are in the cache


class LiveGate(NamedTuple):
    """The live pairs of a gate."""

    pairs: Pairs
    values: Tensor
    """[nnz]: the gates, in the dtype of the sums."""
    screened: int
    """Pairs whose gate was computed after the int8 screen, 0 for the float32 form."""


def tile_of(batch: int) -> int:
    """Return the tokens of a tile: equal tiles, whole words of live bits, at most 1024."""
    tiles = -(-batch // _TILE)
    return max(64, -(-batch // tiles // 64) * 64)


def _check_gate(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise unless the operands are matrices [batch, d] and [neurons, d] of one dtype."""
    for given, name in ((x, "x"), (weight, "weight")):
        check_array(given, f"a gate: {name}", rank=2, dtypes=FLOATS)
    if (
        x.shape[1] != weight.shape[1]
        or not len(x)
        or (bias is not None and len(bias) != len(weight))
    ):
        raise ShapeError(
            f"a gate got x {list(x.shape)}, weight {list(weight.shape)} and bias "
            f"{None if bias is None else list(bias.shape)}; [batch, d], [neurons, d] and [neurons] "
            "with at least one row are needed"
        )
    if x.dtype != weight.dtype:
        raise DTypeError(f"a gate got x of {x.dtype} and weight of {weight.dtype}; convert one")


def float_gate(x: Tensor, weight: Tensor, bias: Tensor | None, expected: int = 0) -> LiveGate:
    """Find the live pairs by the gate in the dtype of the weights.

    Args:
        x: [batch, d], contiguous.
        weight: [neurons, d], contiguous.
        bias: [neurons], or None.
        expected: About how many pairs there will be; more costs a copy.
    """
    check(float_gate, locals())
    _check_gate(x, weight, bias)
    batch, neurons, tile = len(x), len(weight), tile_of(len(x))
    starts = range(0, batch, tile)
    indptr = torch.zeros(len(starts) * neurons + 1, dtype=torch.int64)
    capacity = max(expected + expected // 4, 4096)
    tokens = torch.empty(capacity, dtype=torch.int32)
    values = torch.empty(capacity, dtype=kernels.sums_dtype(x.dtype))
    height = min(neurons, max(1, _BLOCK // min(tile, batch)))
    scratch = x.new_empty(height * min(tile, batch))
    column = None if bias is None else bias.to(x.dtype).unsqueeze(1)
    row = end = 0
    for start in starts:
        part = x[start : start + tile].t()
        for k in range(0, neurons, height):
            rows = weight[k : k + height]
            block = scratch[: len(rows) * part.shape[1]].view(len(rows), part.shape[1])
            if column is None:
                torch.mm(rows, part, out=block)
            else:
                torch.addmm(column[k : k + height], rows, part, out=block)
            places = indptr[row : row + len(rows) + 1]
            stop = kernels.compact(block, start, places, tokens, values)
            if stop > len(tokens):
                share = stop / ((row + len(rows)) * part.shape[1])  # as if it went on like this
                size = int(max(stop, 1.25 * share * batch * neurons)) + 4096
                tokens, values = _grown(tokens, size, end), _grown(values, size, end)
                stop = kernels.compact(block, start, places, tokens, values)
            row, end = row + len(rows), stop
    if len(tokens) > end + end // 4 + 4096:  # what is kept for backward should cost what it holds
        tokens, values = tokens[:end].clone(), values[:end].clone()
    return LiveGate(Pairs(indptr, tokens[:end], neurons, batch, tile), values[:end], 0)


def _grown(x: Tensor, size: int, used: int) -> Tensor:
    out = x.new_empty(size)
    out[:used] = x[:used]
    return out


def int8_gate(x: Tensor, weight: Tensor, bias: Tensor | None, slack: float = 1.0) -> LiveGate:
    """Find the live pairs by the gate in int8, and their gates in float32.

    Args:
        x: float32 or bfloat16 [batch, d], contiguous.
        weight: [neurons, d], contiguous, of the same dtype.
        bias: [neurons], or None.
        slack: Scales the bound of the rounding error; 1 is rigorous.
    """
    check(int8_gate, locals())
    _check_gate(x, weight, bias)
    batch, neurons, tile = len(x), len(weight), tile_of(len(x))
    starts = range(0, batch, tile)
    rows = kernels.quantize_rows(weight)
    sums = None if bias is None else bias.to(torch.float32)
    indptr = torch.zeros(len(starts) * neurons + 1, dtype=torch.int64)
    places = [indptr[i * neurons : (i + 1) * neurons + 1] for i in range(len(starts))]
    bits, end = [], 0
    for start, place in zip(starts, places, strict=True):
        part = kernels.quantize_tokens(x[start : start + tile])
        words, end = kernels.screen(part, rows, sums, slack, place)
        bits.append(words)
    tokens = torch.empty(end, dtype=torch.int32)
    for start, place, words in zip(starts, places, bits, strict=True):
        kernels.expand(words, start, place, tokens)
    screened = Pairs(indptr, tokens, neurons, batch, tile)
    pairs, values = kernels.keep(screened, kernels.sample(screened, x, weight, sums))
    return LiveGate(pairs, values, end)


__all__ = ["GateForm", "LiveGate", "float_gate", "int8_gate", "tile_of"]
