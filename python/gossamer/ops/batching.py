"""The verbs under vmap: one rule for their autograd functions and for their registered operators.

A batch of the operand alone is one product with more rows, because leading dimensions are a batch
already. A batch of values or of an upstream gradient has another weight for each member, and of
sddmm another result: one product each, in a loop. Structure has no batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gossamer.errors import GossamerError


def batched(
    name: str,
    call: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    size: int,
    operands: tuple[Tensor, Tensor, Tensor | None],
    dims: tuple[int | None, int | None, int | None],
    others: Any,
) -> tuple[Tensor, int]:
    """Return the results of a batch, and 0, their batch dimension.

    Args:
        name: the verb.
        call: the verb on its operands; leading dimensions are a batch.
        size: members of the batch.
        operands: x and values (and bias), grad_output and values, or grad_output and x.
        dims: the batch dimension of each, or None.
        others: the batch dimensions of all other arguments, which must be None.

    Raises:
        GossamerError: the structure has a batch dimension.
    """
    if any(dim is not None for dim in tree_leaves(others)):
        raise GossamerError(
            f"gossamer.{name} was called under vmap with a batch of structures; it takes a batch "
            "of values or operands: loop over the weights, or give them one mask"
        )
    first, *rest = dims
    if name != "sddmm" and first is not None and all(dim is None for dim in rest):
        return call(operands[0].movedim(first, 0), *operands[1:]), 0
    members = [
        call(*(_member(t, dim, i) for t, dim in zip(operands, dims, strict=True)))  # type: ignore[arg-type]
        for i in range(size)
    ]
    return torch.stack(members), 0


def _member(tensor: Tensor | None, dim: int | None, i: int) -> Tensor | None:
    return tensor if tensor is None or dim is None else tensor.select(dim, i)


__all__ = ["batched"]
