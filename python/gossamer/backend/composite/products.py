"""The products by way of a dense matrix on the device: scatter, torch's product, gather.

    spmm    Y = X scatter(values)^T + b
    spmm_t  dX = dY scatter(values)
    sddmm   gather(dY^T X)

A sum is rounded once, as the kernels round it. One dense matrix lives at a time, and only inside a
call. What runs when a mask changes alone is done on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer import _core
from gossamer.backend.arrays import tensor_of
from gossamer.backend.composite import checks, places
from gossamer.backend.composite.convolutions import (
    convolve,
    convolve_input,
    convolve_weight,
)
from gossamer.backend.composite.host import Host

Layout = _core.products.Layout

_host = Host(_core.products)
encode, encode_csr, decode_csr = _host.encode, _host.encode_csr, _host.decode_csr
check_structure, check_tiles = _host.check_structure, _host.check_tiles
transpose, move = _host.transpose, _host.move


@torch.no_grad()
def spmm(
    x: Any, values: Any, layout: Any, indices: Any, indptr: Any, bias: Any, y: Any, *_: Any
) -> None:
    """Write `X W^T + bias` to y."""
    w = checks.weight(layout, indices, indptr, values)
    x, out = checks.operand(x, "x", w.values, -1, layout.cols), tensor_of(y)
    checks.operand(out, "y", w.values, len(x), layout.rows)
    if bias is None:
        torch.mm(x, w.dense().t(), out=out)
    else:
        b = checks.bias(bias, w.values, layout.rows)
        torch.addmm(b, x, w.dense().t(), out=out)


@torch.no_grad()
def spmm_t(
    grad_output: Any, values: Any, layout: Any, indices: Any, indptr: Any, grad_input: Any, *_: Any
) -> None:
    """Write `dY W` to grad_input."""
    w = checks.weight(layout, indices, indptr, values)
    g, out = checks.operand(grad_output, "grad_output", w.values, -1, layout.rows), grad_input
    out = checks.operand(out, "grad_input", w.values, len(g), layout.cols)
    torch.mm(g, w.dense(), out=out)


@torch.no_grad()
def spmm_t_packed(
    grad_output: Any,
    values: Any,
    layout: Any,
    indices: Any,
    indptr: Any,
    t_layout: Any,
    t_indices: Any,
    t_indptr: Any,
    perm: Any,
    grad_input: Any,
    *_: Any,
) -> None:
    """Write `dY W` to grad_input, of the entries of W that its transpose keeps."""
    w = checks.weight(layout, indices, indptr, values)
    turned = checks.transposed(w, t_layout, t_indices, t_indptr, perm)
    g = checks.operand(grad_output, "grad_output", w.values, -1, layout.rows)
    out = checks.operand(grad_input, "grad_input", w.values, len(g), layout.cols)
    torch.mm(g, turned.dense().t(), out=out)


@torch.no_grad()
def sddmm(
    grad_output: Any, x: Any, layout: Any, indices: Any, indptr: Any, grad_values: Any, *_: Any
) -> None:
    """Write `dY^T X` at the kept entries to grad_values."""
    w = checks.weight(layout, indices, indptr, grad_values, "grad_values")
    x = checks.operand(x, "x", w.values, -1, layout.cols)
    g = checks.operand(grad_output, "grad_output", w.values, len(x), layout.rows)
    torch.index_select(torch.mm(g.t(), x).flatten(), 0, w.at(), out=w.values)


@torch.no_grad()
def scatter(values: Any, layout: Any, indices: Any, indptr: Any, dense: Any) -> None:
    """Write values to their places in dense, which holds zeros."""
    w = checks.weight(layout, indices, indptr, values)
    out = checks.contiguous(dense, "dense", w.values, layout)
    out.view(-1).index_copy_(0, w.at(), w.values)


@torch.no_grad()
def gather(dense: Any, layout: Any, indices: Any, indptr: Any, values: Any) -> None:
    """Write the kept entries of dense to values."""
    w = checks.weight(layout, indices, indptr, values)
    source = checks.contiguous(dense, "dense", w.values, layout)
    torch.index_select(source.view(-1), 0, w.at(), out=w.values)


def coordinates(layout: Any, indices: Tensor, indptr: Tensor | None) -> Tensor:
    """Return `row * cols + col` of each value."""
    checks.structure(layout, indices, indptr)
    return places.coordinates(layout, indices, indptr)


__all__ = [
    "Layout",
    "check_structure",
    "check_tiles",
    "convolve",
    "convolve_input",
    "convolve_weight",
    "coordinates",
    "decode_csr",
    "encode",
    "encode_csr",
    "gather",
    "move",
    "scatter",
    "sddmm",
    "spmm",
    "spmm_t",
    "spmm_t_packed",
    "transpose",
]
