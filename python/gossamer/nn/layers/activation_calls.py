"""The calls of an `ActivationSparseFFN`: how each is computed, and what it found.

A call takes the cheapest form for the running shares, measured once per shape. Without a backward
pass, a call of a few tokens decodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gossamer.activations import GateForm, Options, Weights, costs_of
from gossamer.activations.decoding import decode, decoding_costs, is_few
from gossamer.activations.functions import find_live, pulled
from gossamer.activations.passes import sparse_forward
from gossamer.activations.switch import Form, cheapest
from gossamer.backend import activations as kernels
from gossamer.backend.activations import Pairs

if TYPE_CHECKING:
    from gossamer.nn.layers.activation_sparse import ActivationSparseFFN

# Below this many products of the dense network everything is overhead: the dense form serves.
_SMALL = 1 << 22
# How often the other forms' counts are looked at.
_LOOK_EVERY = 32


def plan(layer: ActivationSparseFFN, x: Tensor, weights: Weights, learns: bool) -> Options | None:
    """Choose how a call is computed.

    Args:
        layer: that is called.
        x: [batch, d].
        weights: in the dtype of x.
        learns: whether a backward pass follows.

    Returns:
        How; None is by torch's products.
    """
    layer.shares.calls += 1
    if learns:  # the gate will change, and not every optimizer says so
        layer.rounded.forget()
    form = layer.form = _choose(layer, x, weights, learns)
    return None if form == "dense" or not len(x) else options_of(layer, form, len(x))


def options_of(layer: ActivationSparseFFN, gate: GateForm, batch: int) -> Options:
    """Return how a call with a form of the gate is computed."""
    return Options(
        layer.activation,
        gate,
        layer.slack,
        float(layer.penalty) if layer.training else 0.0,
        int((layer.shares.live or 0.0) * batch * layer.hidden),
        layer.memory,
        float(layer.softness),
        layer.former,
    )


def pull_of(layer: ActivationSparseFFN) -> tuple[Tensor, float]:
    """Return the dead neurons, int64, and the strength of the pull on their gates."""
    strength = float(layer.revival) if layer.training else 0.0
    return (layer.shares.dead() if strength else torch.empty(0, dtype=torch.int64)), strength


def with_pull(layer: ActivationSparseFFN, x: Tensor, weights: Weights) -> Weights:
    """Return the weights of a call; those of dead neurons are pulled in its backward pass."""
    dead, strength = pull_of(layer)
    return pulled(weights, x, dead, strength) if len(dead) else weights


@torch.no_grad()
def infer(layer: ActivationSparseFFN, x: Tensor, weights: Weights, options: Options) -> Tensor:
    """Compute a call at its live pairs, without a backward pass: y [batch, d]."""
    if not _decodes(layer, x, weights):
        x = x.contiguous()
        found = find_live(x, weights, options)
        y, _ = sparse_forward(x, weights, found, options)
        count(layer, found.pairs, found.screened, False)
        return y
    int8 = options.gate == "int8" and x.dtype != torch.float64
    rows = layer.rounded.rows_of(layer.gate) if int8 else None  # type: ignore[arg-type]
    y, live, screened = decode(x, weights, options, rows)
    layer.shares.count_live(live, len(x) * layer.hidden)
    if rows is not None:
        layer.shares.count_screened(screened, len(x) * layer.hidden)
    return y


def count(layer: ActivationSparseFFN, pairs: Pairs, screened: int, learns: bool) -> None:
    """Follow the shares of a call at live pairs."""
    alive = pairs.indptr.diff().view(-1, layer.hidden).sum(0)
    layer.shares.count(alive, pairs.batch * layer.hidden, layer.training, learns)
    if screened:
        layer.shares.count_screened(screened, pairs.batch * layer.hidden)


def count_dense(layer: ActivationSparseFFN, h: Tensor, learns: bool) -> None:
    """Follow the shares of a dense call; h [batch, hidden]."""
    if len(h) and (learns or layer.shares.calls % _LOOK_EVERY == 1):
        layer.shares.count(h.count_nonzero(0), h.numel(), layer.training, learns)


def _decodes(layer: ActivationSparseFFN, x: Tensor, weights: Weights) -> bool:
    """Whether a call without a backward pass is one of a few tokens, by weights that stay.

    Autocast and sparse weights give each call a gate of its own, whose rows nobody can keep.
    """
    gate = layer.gate
    stays = isinstance(gate, Tensor) and gate.data_ptr() == weights.gate.data_ptr()
    return is_few(x) and not layer.training and stays


def _choose(layer: ActivationSparseFFN, x: Tensor, weights: Weights, learns: bool) -> Form:
    shares = layer.shares
    if float(layer.softness) > 0.0:
        return "dense"
    if layer.gate_form != "auto":
        return layer.gate_form
    if 9 * len(x) * layer.hidden * layer.d < _SMALL:
        return "dense"
    if shares.live is None:  # a first look
        return "float32"
    few = not learns and _decodes(layer, x, weights)
    costs = decoding_costs(len(x), weights) if few else costs_of(len(x), weights, learns)
    pairs = len(x) * layer.hidden
    if costs.int8_gate is not None and shares.calls % _LOOK_EVERY == 2:
        if few:
            return "int8"  # whose screen is the look
        _look(layer, x, weights)
    screened = 1.0 if shares.screened is None else shares.screened
    return cheapest(costs, shares.live * pairs, screened * pairs)


@torch.no_grad()
def _look(layer: ActivationSparseFFN, x: Tensor, weights: Weights) -> None:
    """Count what the int8 screen would leave."""
    indptr = torch.zeros(layer.hidden + 1, dtype=torch.int64)
    bias = None if weights.gate_bias is None else weights.gate_bias.float()
    rows = kernels.quantize_rows(weights.gate.contiguous())
    _, screened = kernels.screen(kernels.quantize_tokens(x), rows, bias, layer.slack, indptr)
    layer.shares.count_screened(screened, len(x) * layer.hidden)


__all__ = ["count", "count_dense", "infer", "options_of", "plan", "pull_of", "with_pull"]
