"""Tensor parallelism: the rows or columns of a SparseLinear split over processes.

    by rows      Y[:, mine] = X W[mine, :]^T,  dX = sum over processes of dY[:, mine] W[mine, :]
    by columns   Y = sum over processes of X[:, mine] W[:, mine]^T, + b

Styles for torch's `parallelize_module`, beside its own `ColwiseParallel` and `RowwiseParallel`,
which take dense layers only. A split falls on the panels or groups of the pattern. Each process
holds an ordinary weight of its part, so a mask moves there by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ParallelStyle

from gossamer.distributed.structure import compare
from gossamer.errors import PatternError
from gossamer.nn.layers.base import MaskedLayer, linear_of_parts
from gossamer.nn.layers.linear import SparseLinear
from gossamer.ops.verbs import spmm
from gossamer.patterns import NM, GroupedNM, Pattern, Unstructured
from gossamer.weight import SparseWeight

__all__ = ["SparseColwiseParallel", "SparseRowwiseParallel"]


class SparseColwiseParallel(ParallelStyle):
    """Split the rows of a `SparseLinear`, its output features; the input is whole.

    The output is this process's part, as the input of `SparseRowwiseParallel` is. The values are
    those of the first process.

    Raises:
        PatternError: the layer is no SparseLinear, or its rows cannot be split so.

    Example:
        ```
        mesh = torch.distributed.init_device_mesh("cpu", (2,))
        plan = {"up": SparseColwiseParallel(), "down": SparseRowwiseParallel()}
        parallelize_module(mlp, mesh, plan)
        ```
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return _split(module, device_mesh, 0, _ByRows)


class SparseRowwiseParallel(ParallelStyle):
    """Split the columns of a `SparseLinear`, its input features; the output is whole.

    The input is this process's part. The values are those of the first process.

    Raises:
        PatternError: the layer is no SparseLinear, or its columns cannot be split so.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return _split(module, device_mesh, 1, _ByColumns)


class _Split(SparseLinear):
    """A SparseLinear that holds one part of a weight."""

    mesh: DeviceMesh
    dim: int  # of the matrix that is split

    def used_weight(self) -> Tensor:
        """Return the whole dense matrix; all processes must call this."""
        part = self.weight.to_dense()
        return DTensor.from_local(part, self.mesh, [Shard(self.dim)]).full_tensor()

    def to_dense(self) -> nn.Linear:
        """Return an equivalent `nn.Linear` of the whole layer; all processes must call this."""
        bias = self.bias
        if bias is not None and self.dim == 0:
            whole = DTensor.from_local(bias.detach(), self.mesh, [Shard(0)]).full_tensor()
            bias = nn.Parameter(whole, bias.requires_grad)
        weight = nn.Parameter(self.used_weight().detach().clone(), self.entries.requires_grad)
        return linear_of_parts(weight, bias).train(self.training)


class _ByRows(_Split):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear has
        """Map the whole input to this process's part of the output."""
        whole = DTensor.from_local(input, self.mesh, [Replicate()], run_check=False)
        # The gradient of the input is the sum over the parts.
        return spmm(whole.to_local(grad_placements=[Partial()]), self.weight, self.bias)


class _ByColumns(_Split):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear has
        """Map this process's part of the input to the whole output."""
        part = DTensor.from_local(spmm(input, self.weight), self.mesh, [Partial()], run_check=False)
        y: Tensor = part.redistribute(placements=[Replicate()]).to_local()
        return y if self.bias is None else y + self.bias


@torch.no_grad()
def _split(module: nn.Module, mesh: DeviceMesh, dim: int, kind: type[_Split]) -> nn.Module:
    """Turn a layer into one that holds this process's part of its rows or columns."""
    what = "rows" if dim == 0 else "columns"
    sparse = module.sparse_weight if isinstance(module, MaskedLayer) else None
    # What has a mesh is split already; an adapter, or an order of rows, would come to one part.
    whole = any(hasattr(module, name) for name in ("mesh", "adapter", "row_order"))
    if sparse is None or whole or mesh.ndim != 1:
        raise PatternError(
            f"{type(module).__name__}({module.extra_repr()}) on a mesh of {mesh.ndim} dimensions "
            f"cannot be split into {what}: a SparseLinear and one dimension are needed; use "
            "torch's styles for dense layers, or gossamer.densify() first"
        )
    layer: Any = module
    weight, count, group = sparse, mesh.size(), mesh.get_group()
    unit = _unit(weight.pattern, dim)
    if unit is None or weight.shape[dim] % (unit * count):
        raise PatternError(
            f"SparseLinear({layer.extra_repr()}) of pattern {weight.pattern} has "
            f"{weight.shape[dim]} {what}, which {count} processes cannot share"
            + ("" if unit is None else f" in whole groups of {unit}")
            + "; choose another number of processes or pattern, leave the layer out of the plan, "
            "or use gossamer.densify() and torch's styles"
        )
    compare({"weight": weight}, group)
    for tensor in (weight.values, layer.bias):
        if tensor is not None:
            dist.broadcast(tensor.detach(), dist.get_global_rank(group, 0), group=group)
    rank = mesh.get_local_rank()
    mask = weight.mask().chunk(count, dim)[rank].contiguous()
    dense = weight.to_dense().chunk(count, dim)[rank].contiguous()
    pattern: Any = weight.pattern
    if isinstance(pattern, Unstructured):  # another part keeps another number
        pattern = Unstructured.keeping(int(mask.sum()), mask.numel(), pattern.vector)
    part = SparseWeight.from_dense(
        dense, pattern, mask, transpose=weight.stored_transpose, backward=weight.backward
    )
    part.values.requires_grad_(weight.values.requires_grad)
    layer.weight = part
    layer.out_features, layer.in_features = part.shape
    if layer.bias is not None and dim == 0:
        bias = layer.bias.detach().chunk(count)[rank].clone()
        layer.bias = nn.Parameter(bias, layer.bias.requires_grad)
    layer.__class__ = kind
    layer.mesh, layer.dim = mesh, dim
    return layer  # type: ignore[no-any-return]


def _unit(pattern: Pattern, dim: int) -> int | None:
    """Return how many rows or columns stay together; None if no split keeps the pattern."""
    if isinstance(pattern, NM | GroupedNM):
        rows = max(pattern.tile[0], pattern.m)  # whole groups down the columns too
        if rows % pattern.tile[0]:
            rows = pattern.tile[0] * pattern.m
        return rows if dim == 0 else pattern.m
    return pattern.tile[dim] if isinstance(pattern, Unstructured) else None
