"""Which form of a sparse feed-forward network is the fastest for the running shares.

The time of each form is linear in what it visits:

    dense     D
    float32   G + P0 + P1 live
    int8      Q + R screened + P0 + P1 live

The coefficients are measured once for each shape (batch, d, hidden, dtype, threads, with or without
gradients) on this machine and shared by all layers of that shape; the counts are running means.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from gossamer.activations.functions import dense_feed_forward, feed_forward_at
from gossamer.activations.gate import LiveGate, float_gate, tile_of
from gossamer.activations.passes import Options, Weights
from gossamer.arguments import check
from gossamer.backend import activations as kernels
from gossamer.backend.activations import Pairs

Form: TypeAlias = Literal["dense", "float32", "int8"]

_ROUNDS = 3
_measured: dict[tuple[Any, ...], Costs] = {}


class Costs(NamedTuple):
    """Seconds of the forms of one shape."""

    dense: float
    float_gate: float
    int8_gate: float | None
    """None where the int8 gate has no fast product, or does not take the dtype."""
    refine: float
    """Of one screened pair."""
    fixed: float
    pair: float

    def seconds(self, form: Form, live: float, screened: float) -> float:
        """Return the time of a form."""
        check(Costs.seconds, locals())
        return _seconds_of_forms(self, live, screened)[form]

    def best(self, live: float, screened: float) -> Form:
        """Return the form with the smallest time."""
        check(Costs.best, locals())
        return cheapest(self, live, screened)


def cheapest(costs: Costs, live: float, screened: float) -> Form:
    """Return the form with the smallest time, without a check: a call that decodes asks for it."""
    seconds = _seconds_of_forms(costs, live, screened)
    return min(seconds, key=seconds.__getitem__)


def _seconds_of_forms(costs: Costs, live: float, screened: float) -> dict[Form, float]:
    pairs = costs.fixed + costs.pair * live
    int8 = float("inf")
    if costs.int8_gate is not None:
        int8 = costs.int8_gate + costs.refine * screened + pairs
    return {"dense": costs.dense, "float32": costs.float_gate + pairs, "int8": int8}


def costs_of(batch: int, weights: Weights, with_gradients: bool) -> Costs:
    """Measure the forms for a shape, or return what was measured before.

    Args:
        batch: Tokens.
        weights: Weights of the shape; they are not changed.
        with_gradients: Whether a backward pass follows.
    """
    check(costs_of, locals())
    kind = "training" if with_gradients else "inference"
    measure = partial(_measure, weights=weights, with_gradients=with_gradients)
    return remembered(kind, batch, weights, measure)


def remembered(kind: str, batch: int, weights: Weights, measure: Callable[[int], Costs]) -> Costs:
    """Return the costs of a kind of call for a shape; `measure(batch)` is called once."""
    batch = _rounded(batch)
    hidden, d = weights.gate.shape
    key = (
        kind,
        batch,
        d,
        hidden,
        weights.up is None,
        weights.gate.dtype,
        torch.get_num_threads(),
    )
    if key not in _measured:
        _measured[key] = measure(batch)
    return _measured[key]


def _rounded(batch: int) -> int:
    """A batch that differs by less than an eighth has the coefficients of its neighbour."""
    step = 1 << max(0, batch.bit_length() - 3)
    return -(-batch // step) * step


def seconds_of(run: Callable[[], object]) -> float:
    """Return the median time of a call."""
    run()
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _measure(batch: int, weights: Weights, with_gradients: bool) -> Costs:
    generator = torch.Generator().manual_seed(0)
    hidden, d = weights.gate.shape
    dtype = weights.gate.dtype
    x = torch.randn(batch, d, generator=generator).to(dtype)
    dy = torch.randn(batch, d, generator=generator).to(dtype)
    own = Weights(*(None if w is None else w.detach().clone() for w in weights))  # type: ignore[arg-type]
    leaves = [x, *(w for w in own if w is not None)]
    for leaf in leaves:
        leaf.requires_grad_(with_gradients)

    def both(run: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def call() -> None:
            y = run()
            if with_gradients:
                for leaf in leaves:
                    leaf.grad = None
                y.backward(dy)  # type: ignore[no-untyped-call]

        return call

    with torch.set_grad_enabled(with_gradients):
        dense = seconds_of(both(lambda: dense_feed_forward(x, own, Options())[0]))
        few, many = (_random_pairs(batch, hidden, share, dtype) for share in (0.01, 0.08))
        times = [
            seconds_of(both(lambda live=live: feed_forward_at(x, own, live, Options())))  # type: ignore[misc]
            for live in (few, many)
        ]
    with torch.no_grad():
        gate = seconds_of(lambda: float_gate(x.detach(), own.gate, own.gate_bias, few.pairs.nnz))
        refine = seconds_of(lambda: kernels.sample(many.pairs, x.detach(), own.gate))
        int8 = None
        if dtype != torch.float64 and kernels.has_fast_int8():
            int8 = seconds_of(lambda: _screen(x.detach(), own))
    pair = max(0.0, (times[1] - times[0]) / (many.pairs.nnz - few.pairs.nnz))
    fixed = max(0.0, times[0] - pair * few.pairs.nnz)
    return Costs(dense, gate, int8, refine / many.pairs.nnz, fixed, pair)


def _screen(x: torch.Tensor, weights: Weights) -> None:
    indptr = torch.zeros(len(weights.gate) + 1, dtype=torch.int64)
    kernels.screen(
        kernels.quantize_tokens(x), kernels.quantize_rows(weights.gate), None, 1.0, indptr
    )


def _random_pairs(batch: int, hidden: int, share: float, dtype: torch.dtype) -> LiveGate:
    """Return pairs at random places, with gates of 1."""
    tile = tile_of(batch)
    generator = torch.Generator().manual_seed(0)
    counts, tokens = [], []
    for start in range(0, batch, tile):
        count = min(tile, batch - start)
        live = torch.rand(hidden, count, generator=generator) < share
        counts.append(live.sum(1))
        tokens.append(live.nonzero()[:, 1] + start)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(counts).cumsum(0)])
    ids = torch.cat(tokens).to(torch.int32)
    values = torch.ones(len(ids), dtype=kernels.sums_dtype(dtype))
    return LiveGate(Pairs(indptr, ids, hidden, batch, tile), values, 0)


__all__ = ["Costs", "Form", "cheapest", "costs_of", "remembered", "seconds_of"]
