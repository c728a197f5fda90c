"""Checks a sparse layer against its dense form: first the numbers, then the training time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.errors import ArgumentError, GossamerError
from gossamer.nn.layers.linear import SparseLinear
from gossamer.ops import sddmm
from gossamer.timing import interleaved

ROUNDS, WARMUP = 7, 2


def dense_wins(name: str, sparse: SparseLinear, batch: int) -> str | None:
    """Time the forward and backward pass of a layer, sparse and dense, on random input.

    Args:
        name: name of the layer in the result.
        sparse: the layer; it does not change.
        batch: rows of the input, at least 1.

    Returns:
        A line with both times if the dense layer is faster, else None.

    Raises:
        GossamerError: the sparse result differs from the dense product.
        ArgumentError: `batch` is below 1.
    """
    if batch < 1:
        raise ArgumentError(f"batch={batch} was given; the timing check needs at least 1 row")
    dense = sparse.to_dense()
    values = sparse.weight.values
    generator = torch.Generator().manual_seed(0)  # must not change torch's random state
    x = torch.randn(batch, sparse.in_features, generator=generator).to(values.dtype)
    g = torch.randn(batch, sparse.out_features, generator=generator).to(values.dtype)
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


def verify(name: str, sparse: SparseLinear, x: Tensor, grad_output: Tensor) -> None:
    """Compare all three products with dense ones in float64; raise GossamerError on a difference.

    The tolerance per entry is the rounding error: a small part of the sum of its terms' magnitudes.
    """
    with torch.enable_grad():
        y = sparse(x)
        (grad_x,) = torch.autograd.grad(y, x, grad_output)
    grad_weight = backend.scatter(
        sddmm(grad_output, x.detach(), sparse.weight), sparse.weight.structure
    )
    weight = sparse.weight.to_dense().detach().double()
    bias = torch.zeros(()) if sparse.bias is None else sparse.bias.detach().double()
    mask = sparse.weight.mask()
    xd, gd = x.detach().double(), grad_output.double()
    checks = {
        "output": (y.detach(), xd @ weight.T + bias, xd.abs() @ weight.abs().T + bias.abs()),
        "input gradient": (grad_x, gd @ weight, gd.abs() @ weight.abs()),
        "weight gradient": (grad_weight, mask * (gd.T @ xd), mask * (gd.abs().T @ xd.abs())),
    }
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    tolerance = 2 * torch.finfo(x.dtype).eps + 64 * torch.finfo(sums).eps
    for what, (got, expected, scale) in checks.items():
        off = (got.double() - expected).abs() - tolerance * scale
        if not bool((off <= 0).all()):
            raise GossamerError(
                f"the {what} of layer {name!r} differs from the dense product by up to "
                f"{float((got.double() - expected).abs().max()):.3g}; this is a fault of a "
                "kernel: please report it with the output of `gossamer info`"
            )
