"""The recurrences of torch's LSTM, GRU and RNN, composed of products that may be sparse.

Each layer multiplies all steps by the input matrix at once, then goes step by step:

    LSTM  i, f, g, o = W_ih x + W_hh h;  c = s(f) c + s(i) tanh(g);  h = s(o) tanh(c)
    GRU   n = tanh(W_in x + s(r) W_hn h);  h = (1 - s(z)) n + s(z) h
    RNN   h = tanh or relu of W_ih x + W_hh h

Under autocast the products run in bfloat16, and states keep their dtype.
Rows are those of a packed sequence: `sizes[t]` sequences have a step t. Signatures are torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State, "Weights"], State]


class Weights:
    """The weights of a layer in one direction, matrices or sparse operands."""

    def __init__(self, given: Sequence[Any], has_biases: bool) -> None:
        self.input, self.hidden = given[:2]
        biases: Sequence[Any] = given[2:4] if has_biases else (None, None)
        self.input_bias, self.hidden_bias = biases
        rest = given[4 if has_biases else 2 :]
        self.projection = rest[0] if rest else None

    def of_hidden(self, h: Tensor) -> Tensor:
        """Return W_hh h + b."""
        return F.linear(h, self.hidden, self.hidden_bias)


def _lstm(gates: Tensor, state: State, weights: Weights) -> State:
    h, c = state
    i, f, g, o = (gates + weights.of_hidden(h)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if weights.projection is None else F.linear(h, weights.projection)), c


def _gru(gates: Tensor, state: State, weights: Weights) -> State:
    (h,) = state
    r, z, n = gates.chunk(3, -1)
    hr, hz, hn = weights.of_hidden(h).chunk(3, -1)
    n = (n + (r + hr).sigmoid() * hn).tanh()
    return (n + (z + hz).sigmoid() * (h - n),)


def _rnn(act: Callable[[Tensor], Tensor]) -> Step:
    def step(gates: Tensor, state: State, weights: Weights) -> State:
        return (act(gates + weights.of_hidden(state[0])),)

    return step


def _direction(
    step: Step, data: Tensor, sizes: list[int], start: State, weights: Weights, backwards: bool
) -> tuple[Tensor, State]:
    """Return the outputs [rows, hidden] and the last states of one layer in one direction."""
    gates = torch.split(F.linear(data, weights.input, weights.input_bias), sizes)
    outputs: list[Tensor] = []
    done: list[State] = []
    first = sizes[-1] if backwards else sizes[0]
    state = tuple(part[:first] for part in start)
    for t in reversed(range(len(sizes))) if backwards else range(len(sizes)):
        have = len(state[0])
        if sizes[t] < have:  # shorter sequences have ended
            done.append(tuple(part[sizes[t] :] for part in state))
            state = tuple(part[: sizes[t]] for part in state)
        elif sizes[t] > have:  # their last step, backwards
            more = (part[have : sizes[t]] for part in start)
            state = tuple(torch.cat(pair) for pair in zip(state, more, strict=True))
        state = _kept(step(gates[t], state, weights), state)
        outputs.append(state[0])
    ends = [state, *reversed(done)]
    last = tuple(torch.cat(parts) for parts in zip(*ends, strict=True))
    return torch.cat(outputs[::-1] if backwards else outputs), last


def _layers(step: Step, states: int) -> Callable[..., Any]:
    """Return torch's function of all layers, for packed sequences or a tensor of steps."""

    def packed(
        data: Tensor, sizes: list[int], start: State, params: Sequence[Any], has_biases: bool,
        num_layers: int, dropout: float, train: bool, bidirectional: bool,
    ) -> tuple[Tensor, State]:  # fmt: skip
        directions = 2 if bidirectional else 1
        each = len(params) // (num_layers * directions)
        lasts: list[State] = []
        for layer in range(num_layers):
            if layer and train and dropout:
                data = F.dropout(data, dropout, True)
            outputs = []
            for direction in range(directions):
                at = layer * directions + direction
                weights = Weights(params[at * each : (at + 1) * each], has_biases)
                begin = tuple(part[at] for part in start)
                y, last = _direction(step, data, sizes, begin, weights, direction == 1)
                outputs.append(y)
                lasts.append(last)
            data = torch.cat(outputs, -1) if bidirectional else outputs[0]
        return data, tuple(torch.stack(parts) for parts in zip(*lasts, strict=True))

    def call(first: Tensor, *args: Any) -> Any:
        if not isinstance(args[2], bool):  # data, batch_sizes, hx, params, has_biases, …
            sizes, hx, *rest = args
            data, last = packed(first, sizes.tolist(), _as_state(hx), *rest)
            return data, *last
        hx, params, *rest, batch_first = args
        x = first.transpose(0, 1) if batch_first else first
        steps, batch = x.shape[:2]
        data, last = packed(x.flatten(0, 1), [batch] * steps, _as_state(hx), params, *rest)
        y = data.view(steps, batch, data.shape[-1])
        return y.transpose(0, 1) if batch_first else y, *last

    def cell(x: Tensor, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> Any:
        weights = Weights([w_ih, w_hh, b_ih, b_hh], True)
        before = _as_state(hx)
        state = _kept(step(F.linear(x, w_ih, b_ih), before, weights), before)
        return state if states == 2 else state[0]

    call.cell = cell  # type: ignore[attr-defined]
    return call


def _kept(state: State, before: State) -> State:
    """Return states in the dtype that they had, which a product under autocast changes."""
    return tuple(part.to(was.dtype) for part, was in zip(state, before, strict=True))


def _as_state(hx: Any) -> State:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


_KINDS: dict[str, tuple[Step, int]] = {
    "lstm": (_lstm, 2),
    "gru": (_gru, 1),
    "rnn_tanh": (_rnn(torch.tanh), 1),
    "rnn_relu": (_rnn(torch.relu), 1),
}

CALLS: dict[Any, Callable[..., Any]] = {}
"""By torch's functions of layers and of cells, what they compute."""

for _name, (_step, _states) in _KINDS.items():
    _call = _layers(_step, _states)
    CALLS[getattr(torch, _name)] = _call
    CALLS[getattr(torch, f"{_name}_cell")] = _call.cell  # type: ignore[attr-defined]

__all__ = ["CALLS"]
