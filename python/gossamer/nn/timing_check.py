"""Checks a sparse layer against its dense form: first the numbers, then the training time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.errors import ArgumentError, GossamerError
from gossamer.nn.layers.filters import matrix_of
from gossamer.nn.layers.sparse import SparseLayer
from gossamer.timing import interleaved

ROUNDS, WARMUP = 7, 2


def dense_wins(name: str, sparse: SparseLayer, batch: int) -> str | None:
    """Time the forward and backward pass of a layer, sparse and dense, on random input.

    Args:
        name: name of the layer in the result.
        sparse: the layer; it does not change.
        batch: rows of the output, at least 1; of a convolution, about so many pixels.

    Returns:
        A line with both times if the dense layer is faster, else None.

    Raises:
        GossamerError: the sparse result differs from the dense product.
        ArgumentError: `batch` is below 1.
    """
    if batch < 1:
        raise ArgumentError(f"batch={batch} was given; the timing check needs at least 1 row")
    dense = sparse.to_dense()
    generator = torch.Generator().manual_seed(0)  # must not change torch's random state
    x = sparse.example(batch, generator)
    with torch.no_grad():
        shape = sparse(x).shape
    g = torch.randn(shape, generator=generator).to(x.dtype)
    x.requires_grad_()
    verify(name, sparse, x, g)

    def step(layer: nn.Module) -> None:
        wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
        with torch.enable_grad():
            torch.autograd.grad(layer(x), wanted, g)

    times = interleaved(
        {"sparse": lambda: step(sparse), "dense": lambda: step(dense)}, ROUNDS, WARMUP
    )
    quick, slow = times["dense"].median, times["sparse"].median
    if slow <= quick:
        return None
    return (
        f"{name} ({sparse.weight.pattern} of {sparse.out_features}x{sparse.in_features} at batch "
        f"{batch}: dense {1e3 * quick:.3g} ms, sparse {1e3 * slow:.3g} ms)"
    )


def verify(name: str, sparse: SparseLayer, x: Tensor, grad_output: Tensor) -> None:
    """Compare all three products with dense ones in float64; raise GossamerError on a difference.

    The tolerance per entry is the rounding error: a small part of the sum of its terms' magnitudes.
    """
    values = sparse.weight.values
    trained = values.requires_grad
    values.requires_grad_()
    try:
        got = _products(sparse, x, values, grad_output)
    finally:
        values.requires_grad_(trained)
    got[2] = backend.scatter(got[2], sparse.weight.structure)
    dense = sparse.to_dense().double()
    expected = _dense_products(dense, x.detach().double(), grad_output.double())
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.abs_()
    scales = _dense_products(dense, x.detach().double().abs(), grad_output.double().abs())
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    tolerance = 2 * torch.finfo(x.dtype).eps + 64 * torch.finfo(sums).eps
    mask = sparse.weight.mask()
    for what, mine, theirs, scale in zip(
        ("output", "input gradient", "weight gradient"), got, expected, scales, strict=True
    ):
        wanted, size = (mask * t if what == "weight gradient" else t for t in (theirs, scale))
        off = (mine.double() - wanted).abs()
        if not bool((off <= tolerance * size).all()):
            raise GossamerError(
                f"the {what} of layer {name!r} differs from the dense product by up to "
                f"{float(off.max()):.3g}; this is a fault of a kernel: please report it with the "
                "output of `gossamer info`"
            )


def _products(layer: nn.Module, x: Tensor, entries: Tensor, grad_output: Tensor) -> list[Tensor]:
    """Return the output of a layer and the gradients of its input and of its entries."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        y = layer(x)
        return [y.detach(), *torch.autograd.grad(y, (x, entries), grad_output)]


def _dense_products(layer: nn.Module, x: Tensor, grad_output: Tensor) -> list[Tensor]:
    weight: Any = layer.weight
    weight.requires_grad_()
    y, grad_x, grad_weight = _products(layer, x, weight, grad_output)
    return [y, grad_x, matrix_of(grad_weight) if grad_weight.dim() > 2 else grad_weight]
