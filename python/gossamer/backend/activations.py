"""Sparse activations: the live (token, neuron) pairs of a gate, and products at these pairs alone.

A weight is [neurons, d], a neuron is one row of it. Numbers of pairs (gates, factors) are float64
for float64 weights and float32 otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gossamer.backend.registry import module_of

FEW_TOKENS = 16
"""The most tokens of a call of `decode`."""
_WORD = 64  # tokens in a word of live bits


class Pairs(NamedTuple):
    """The live pairs of a batch, in the order (tile, neuron, token).

    Row `tile * neurons + k` of `indptr` holds the tokens of neuron k in that tile, ascending.
    """

    indptr: Tensor
    """int64 [tiles * neurons + 1]."""
    tokens: Tensor
    """int32 [nnz]: the token of each pair."""
    neurons: int
    batch: int
    """Tokens in all."""
    tile: int
    """Tokens of a tile; the last one may have fewer."""

    @property
    def nnz(self) -> int:
        """The number of live pairs."""
        return len(self.tokens)


class QuantizedRows(NamedTuple):
    """Rows of a weight rounded to int8, with one scale each."""

    q: Tensor
    """uint8 [neurons, d rounded up to 4]: the bytes of the int8 numbers."""
    stats: Tensor
    """float32 [neurons, 4]: scale, norm, norm of the rounded row, norm of the difference."""
    sums: Tensor
    """int32 [neurons]: sums of the rounded rows."""


class QuantizedTokens(NamedTuple):
    """Tokens rounded to int8, packed for the product with `QuantizedRows`."""

    q: Tensor
    """uint8 [blocks of 64 tokens, 64 * d rounded up to 4]."""
    stats: Tensor
    """float32 [3, 64 * blocks]: scales, norms of the rounded tokens, norms of the difference."""
    tokens: int
    """How many; the last block may have fewer than 64."""


def sums_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of gates and factors for weights of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def compact(gate: Tensor, first_token: int, indptr: Tensor, tokens: Tensor, values: Tensor) -> int:
    """Append the live pairs of a block of the gate.

    Args:
        gate: [rows, count of tokens], contiguous. A pair is live if its gate is positive, NaN or
            -inf.
        first_token: The number of the first token.
        indptr: int64 [rows + 1]; [0] says where the pairs start, the rest is written.
        tokens: int32 [capacity].
        values: [capacity], the gates of the pairs.

    Returns:
        Where the pairs end. If that exceeds the capacity, tokens and values are not written.
    """
    end: int = module_of(gate).activations.compact(gate, first_token, indptr, tokens, values)
    return end


def quantize_rows(weight: Tensor) -> QuantizedRows:
    """Round each row of a float32 or bfloat16 weight [neurons, d] to int8."""
    rows, d = weight.shape
    out = QuantizedRows(
        weight.new_empty(rows, -(-d // 4) * 4, dtype=torch.uint8),
        weight.new_empty(rows, 4, dtype=torch.float32),
        weight.new_empty(rows, dtype=torch.int32),
    )
    module_of(weight).activations.quantize_rows(weight, *out)
    return out


def quantize_tokens(x: Tensor) -> QuantizedTokens:
    """Round each token of x, float32 or bfloat16 [tokens, d], to int8."""
    count, d = x.shape
    blocks = -(-count // _WORD)
    q = x.new_empty(blocks, -(-d // 4) * 4 * _WORD, dtype=torch.uint8)
    stats = x.new_empty(3, blocks * _WORD, dtype=torch.float32)
    module_of(x).activations.quantize_tokens(x, q, stats)
    return QuantizedTokens(q, stats, count)


def screen(
    x: QuantizedTokens, weight: QuantizedRows, bias: Tensor | None, slack: float, indptr: Tensor
) -> tuple[Tensor, int]:
    """Find the pairs whose gate may be positive.

    Args:
        x: Tokens.
        weight: Rows of the gate.
        bias: float32 [neurons], or None.
        slack: Scales the bound of the rounding error; 1 is rigorous.
        indptr: int64 [neurons + 1]; [0] says where the pairs start, the rest is written.

    Returns:
        Live bits, int64 [neurons, blocks], and where the pairs end.
    """
    bits = x.q.new_empty(len(weight.q), len(x.q), dtype=torch.int64)
    end: int = module_of(bits).activations.screen(
        x.q, x.stats, *weight, bias, x.tokens, slack, bits, indptr
    )
    return bits, end


def screen_table() -> str:
    """Return the name of the table that serves the int8 product."""
    name: str = module_of(None).activations.screen_table()
    return name


def has_fast_int8() -> bool:
    """Return whether the table in use multiplies int8 by instructions of its own."""
    return screen_table() == "avx512vnni"


def expand(bits: Tensor, first_token: int, indptr: Tensor, tokens: Tensor) -> None:
    """Write the tokens of live bits to their places in `tokens`."""
    module_of(bits).activations.expand(bits, first_token, indptr, tokens)


def keep(pairs: Pairs, gate: Tensor) -> tuple[Pairs, Tensor]:
    """Return the pairs whose gate [nnz] is live, and their gates."""
    indptr, tokens = torch.empty_like(pairs.indptr), torch.empty_like(pairs.tokens)
    kept = torch.empty_like(gate)
    count = module_of(gate).activations.keep(*pairs, gate, indptr, tokens, kept)
    return pairs._replace(indptr=indptr, tokens=tokens[:count].clone()), kept[:count].clone()


def sample(pairs: Pairs, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return <x[token], weight[neuron]> + bias[neuron] at the pairs: [nnz].

    Args:
        pairs: Live pairs.
        x: [batch, d], contiguous.
        weight: [neurons, d], contiguous, of the same dtype.
        bias: [neurons] in the dtype of the sums, or None.
    """
    out = x.new_empty(pairs.nnz, dtype=sums_dtype(x.dtype))
    module_of(x).activations.sample(*pairs, x, weight, bias, out)
    return out


def scatter(
    pairs: Pairs,
    weight: Tensor,
    a: Tensor,
    weight2: Tensor | None = None,
    b: Tensor | None = None,
) -> Tensor:
    """Return the sums over each token's pairs of a weight[neuron] (+ b weight2[neuron]).

    Args:
        pairs: Live pairs.
        weight: [neurons, d], contiguous.
        a: [nnz] in the dtype of the sums.
        weight2: A second weight, or None.
        b: Its factors.

    Returns:
        [batch, d].
    """
    out = weight.new_empty(pairs.batch, weight.shape[1])
    module_of(weight).activations.scatter(*pairs, weight, a, weight2, b, out)
    return out


def accumulate(
    pairs: Pairs,
    x: Tensor,
    grad_output: Tensor,
    a: Tensor,
    b: Tensor | None,
    c: Tensor,
    out: tuple[Tensor, Tensor | None, Tensor],
) -> None:
    """Write the gradients of the weights, the sums over each neuron's pairs.

    Args:
        pairs: Live pairs.
        x: [batch, d], contiguous.
        grad_output: [batch, d], contiguous.
        a: [nnz], factors of x for the first gradient.
        b: [nnz], factors of x for the second, or None.
        c: [nnz], factors of grad_output for the third.
        out: Three matrices [neurons, d], contiguous; the second is None if b is.
    """
    module_of(x).activations.accumulate(*pairs, x, grad_output, a, b, c, *out)


def sum_neurons(pairs: Pairs, values: Tensor) -> Tensor:
    """Return the sums of values [nnz] over each neuron's pairs: [neurons]."""
    out = values.new_empty(pairs.neurons)
    module_of(values).activations.sum_neurons(*pairs, values, out)
    return out


def decode(
    x: Tensor,
    weights: tuple[Tensor, Tensor | None, Tensor],
    biases: tuple[Tensor | None, Tensor | None, Tensor | None],
    square: bool,
    gate: Tensor | QuantizedRows,
    slack: float = 1.0,
) -> tuple[Tensor, int, int]:
    """Compute a whole network for a few tokens.

    Args:
        x: [tokens, d], at most `FEW_TOKENS`, contiguous.
        weights: Gate, up (or None) and down [neurons, d], contiguous, in the dtype of x.
        biases: Theirs, in the dtype of the sums, or None.
        square: Whether the activation is the square of ReLU.
        gate: The gate [tokens, neurons] with its bias, in the dtype of x; or the rounded rows of
            its weight.
        slack: Scales the bound of the rounding error; 1 is rigorous.

    Returns:
        y [tokens, d], the number of live pairs, and that of pairs whose gate was computed after the
        int8 screen, 0 without it.
    """
    y = torch.empty_like(x)
    dense, rows = (gate, (None,) * 3) if isinstance(gate, Tensor) else (None, gate)
    call = module_of(x).activations.decode
    live, screened = call(x, *weights, *biases, square, dense, *rows, slack, y)
    return y, live, screened


__all__ = [
    "FEW_TOKENS",
    "Pairs",
    "QuantizedRows",
    "QuantizedTokens",
    "accumulate",
    "compact",
    "decode",
    "expand",
    "has_fast_int8",
    "keep",
    "quantize_rows",
    "quantize_tokens",
    "sample",
    "scatter",
    "screen",
    "screen_table",
    "sum_neurons",
    "sums_dtype",
]
