"""Decoding: a network for a few tokens at a time, without gradients.

Only memory counts there. The int8 gate reads a quarter of the gate's bytes if its rounded rows are
kept between the calls; of the exact rows it reads those of the gate that the screen leaves, and the
live ones of up and down.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from gossamer.activations.passes import Options, Weights, cast, dense_forward
from gossamer.activations.switch import Costs, remembered, seconds_of
from gossamer.backend import activations as kernels
from gossamer.backend.activations import FEW_TOKENS, QuantizedRows


class RoundedGate:
    """The rounded rows of one weight, kept while the weight is the same.

    A change is seen by the tensor's version, as autograd sees it: whatever writes through
    `weight.data` or behind torch's back is not seen, and needs `forget()`.

    Example:
        >>> import torch
        >>> rounded = RoundedGate()
        >>> weight = torch.randn(8, 16)
        >>> rows = rounded.rows_of(weight)
        >>> rounded.rows_of(weight) is rows
        True
        >>> rounded.rows_of(weight.mul_(2)) is rows
        False
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Free the rows."""
        self._rows: QuantizedRows | None = None
        self._weight: Callable[[], Tensor | None] = lambda: None
        self._seen = (0, 0)

    def rows_of(self, weight: Tensor) -> QuantizedRows:
        """Return the rounded rows of a weight [neurons, d]; float32 or bfloat16, contiguous."""
        if weight.is_inference():  # whose changes nobody counts
            self.forget()
            return kernels.quantize_rows(weight)
        seen = (weight.data_ptr(), weight._version)
        if self._rows is None or self._weight() is not weight or seen != self._seen:
            self._rows, self._seen = kernels.quantize_rows(weight.detach()), seen
            self._weight = weakref.ref(weight)
        return self._rows

    def __deepcopy__(self, memo: object) -> RoundedGate:
        return RoundedGate()

    def __reduce__(self) -> tuple[type[RoundedGate], tuple[()]]:
        return RoundedGate, ()


def is_few(x: Tensor) -> bool:
    """Return whether x [batch, d] has so few rows that `decode` takes it."""
    return 0 < len(x) <= FEW_TOKENS


def decode(
    x: Tensor, weights: Weights, options: Options, rows: QuantizedRows | None
) -> tuple[Tensor, int, int]:
    """Compute the network for a few tokens; no gradients.

    Args:
        x: [tokens, d], at most `FEW_TOKENS`.
        weights: in the dtype of x.
        options: its activation and slack.
        rows: the rounded rows of the gate's weight; None computes the gate by torch.

    Returns:
        y [tokens, d], the number of live pairs, and of screened ones.
    """
    sums = kernels.sums_dtype(x.dtype)
    gate = rows or functional.linear(x, weights.gate, cast(weights.gate_bias, x))
    gate_weight, up, down, *biases = (
        None if w is None else w.detach().contiguous() for w in weights
    )
    return kernels.decode(
        x.contiguous(),
        (gate_weight, up, down),  # type: ignore[arg-type]
        tuple(None if b is None else b.to(sums) for b in biases),  # type: ignore[arg-type]
        options.activation == "relu2",
        gate,
        options.slack,
    )


def decoding_costs(batch: int, weights: Weights) -> Costs:
    """Measure the forms of a call that decodes, or return what was measured before."""
    return remembered("decoding", batch, weights, partial(_measure, weights=weights))


@torch.no_grad()
def _measure(batch: int, weights: Weights) -> Costs:
    random = torch.Generator().manual_seed(0)
    hidden, d = weights.gate.shape
    x = torch.randn(batch, d, generator=random).to(weights.gate.dtype)
    plain = Weights(*(None if w is None else w.detach() for w in weights[:3]))  # type: ignore[arg-type]

    def seconds(share: float) -> tuple[float, int]:
        """Of all but the gate, and the live pairs."""
        live = (torch.rand(batch, hidden, generator=random) < share).to(x.dtype)
        none = (None, None, None)
        run = partial(kernels.decode, x, plain[:3], none, False, live)
        return seconds_of(run), int(live.sum())

    dense = seconds_of(partial(dense_forward, x, plain, Options()))
    gate = seconds_of(partial(functional.linear, x, plain.gate))
    (few, n), (many, m) = seconds(0.01), seconds(0.1)
    pair = max(0.0, (many - few) / max(1, m - n))
    fixed = max(0.0, few - pair * n)
    int8 = None
    if x.dtype != torch.float64 and kernels.has_fast_int8():
        rows = kernels.quantize_rows(plain.gate.contiguous())
        never = plain._replace(gate_bias=torch.full((hidden,), -1e30))
        int8 = max(0.0, seconds_of(partial(decode, x, never, Options(), rows)) - fixed)
    refine = pair if plain.up is None else pair / 2  # a row of the gate instead of two others
    return Costs(dense, gate, int8, refine, fixed, pair)


__all__ = ["RoundedGate", "decode", "decoding_costs", "is_few"]
