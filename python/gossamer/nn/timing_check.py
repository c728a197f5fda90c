"""A sparse layer against itself dense: first the same numbers, then the time of a training step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.errors import GossamerError, ShapeError
from gossamer.nn.layers.linear import SparseLinear
from gossamer.ops import sddmm
from gossamer.timing import interleaved

ROUNDS, WARMUP = 7, 2


def dense_wins(name: str, sparse: SparseLinear, batch: int) -> str | None:
    """Time forward and backward of a layer, sparse and dense, on random input.

    Args:
        name: what to call the layer.
        sparse: the layer; it is not changed.
        batch: rows of the input.

    Returns:
        A line with both times when the dense layer is faster, else None.

    Raises:
        GossamerError: the sparse result is not that of the dense product; never seen, and then
            speed does not matter.
        ShapeError: batch is below 1.
    """
    if batch < 1:
        raise ShapeError(f"batch={batch} was given; the timing check needs at least 1 row")
    dense = sparse.to_dense()
    values = sparse.weight.values
    generator = torch.Generator().manual_seed(0)  # not the user's: timing must not move it
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


def verify(name: str, sparse: SparseLinear, x: Tensor, g: Tensor) -> None:
    """Compare all three products with dense ones in float64; raise GossamerError on a difference.

    An entry may be off by what rounding can do to it: a part of the sum of its terms' magnitudes.
    """
    with torch.enable_grad():
        y = sparse(x)
        (grad_x,) = torch.autograd.grad(y, x, g)
    grad_weight = backend.scatter(sddmm(g, x.detach(), sparse.weight), sparse.weight.structure)
    weight = sparse.weight.to_dense().detach().double()
    bias = torch.zeros(()) if sparse.bias is None else sparse.bias.detach().double()
    mask = sparse.weight.mask()
    xd, gd = x.detach().double(), g.double()
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
