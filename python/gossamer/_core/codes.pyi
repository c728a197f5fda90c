"""Sparse codes."""

from typing import Any

def top_k(x: Any, k: int, values: Any, indices: Any, /) -> int: ...
def decode(indices: Any, values: Any, dictionary: Any, bias: Any, out: Any, /) -> None: ...
def dots(indices: Any, dictionary: Any, grad_output: Any, out: Any, /) -> None: ...
def scatter(indices: Any, values: Any, grad_output: Any, out: Any, /) -> None: ...
def prefix_errors(
    indices: Any, values: Any, dictionary: Any, residual: Any, errors: Any, /
) -> None: ...
def prefix_gradients(
    indices: Any,
    values: Any,
    dictionary: Any,
    weights: Any,
    residual: Any,
    grad_values: Any,
    grad_dictionary: Any,
    /,
) -> None: ...
