"""Sparse activations."""

from typing import Any

def compact(gate: Any, token0: int, indptr: Any, tokens: Any, values: Any, /) -> int: ...
def quantize_rows(w: Any, q: Any, stats: Any, sums: Any, /) -> None: ...
def quantize_tokens(x: Any, q: Any, stats: Any, /) -> None: ...
def screen(
    x: Any,
    x_stats: Any,
    w: Any,
    w_stats: Any,
    w_sums: Any,
    bias: Any,
    tokens: int,
    slack: float,
    bits: Any,
    indptr: Any,
    /,
) -> int: ...
def screen_table() -> str: ...
def expand(bits: Any, token0: int, indptr: Any, tokens: Any, /) -> None: ...
def keep(
    indptr: Any,
    tokens: Any,
    neurons: int,
    batch: int,
    tile: int,
    gate: Any,
    kept_indptr: Any,
    kept_tokens: Any,
    kept: Any,
    /,
) -> int: ...
def sample(
    indptr: Any,
    tokens: Any,
    neurons: int,
    batch: int,
    tile: int,
    x: Any,
    w: Any,
    bias: Any,
    out: Any,
    /,
) -> None: ...
def scatter(
    indptr: Any,
    tokens: Any,
    neurons: int,
    batch: int,
    tile: int,
    w: Any,
    a: Any,
    w2: Any,
    b: Any,
    out: Any,
    /,
) -> None: ...
def accumulate(
    indptr: Any,
    tokens: Any,
    neurons: int,
    batch: int,
    tile: int,
    x: Any,
    grad_output: Any,
    a: Any,
    b: Any,
    c: Any,
    gate: Any,
    up: Any,
    down: Any,
    /,
) -> None: ...
def sum_neurons(
    indptr: Any, tokens: Any, neurons: int, batch: int, tile: int, values: Any, out: Any, /
) -> None: ...
def decode(
    x: Any,
    gate: Any,
    up: Any,
    down: Any,
    gate_bias: Any,
    up_bias: Any,
    down_bias: Any,
    square: bool,
    dense_gate: Any,
    q: Any,
    stats: Any,
    sums: Any,
    slack: float,
    y: Any,
    /,
) -> tuple[int, int]: ...
