"""Values that are sharded over processes: torch's DTensor, as `fully_shard` makes it.

A change that needs all values of a weight (of its mask, of a transpose that they choose) gathers
them, one weight at a time; each process then keeps its piece of the result. Structure is not
sharded: every process holds all of it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gossamer.errors import DTypeError
from gossamer.weight.naming import describe

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["check_home", "class_of", "gathered", "groups_of", "is_sharded", "put", "whole"]


def is_sharded(tensor: object) -> bool:
    """Return whether this is a DTensor, of which a process holds a piece."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def class_of(module: nn.Module) -> type:
    """Return the class of a module, below the one that `fully_shard` has put over it.

    Example:
        >>> class_of(nn.ReLU()).__name__
        'ReLU'
    """
    kind = type(module)
    if "torch.distributed.fsdp" in sys.modules:
        from torch.distributed.fsdp import FSDPModule

        if kind.__bases__[0] is FSDPModule:
            return kind.__bases__[1]
    return kind


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor without its graph; of a DTensor, all processes must call this.

    Example:
        >>> import torch
        >>> whole(torch.nn.Parameter(torch.ones(2))).requires_grad
        False
    """
    return gathered(tensor.detach())


def gathered(tensor: Tensor) -> Tensor:
    """Return all of a tensor, differentiable; of a DTensor, all processes must call this."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return full


def put(tensor: Tensor, source: Tensor) -> None:
    """Write all of a tensor; of a DTensor, this process keeps its piece.

    Args:
        tensor: what is written to, in place.
        source: a whole tensor of the same shape; the same on every process.
    """
    if is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        like: Any = tensor
        # Without a source rank nothing is sent: every process cuts its piece out itself.
        piece = distribute_tensor(source, like.device_mesh, like.placements, src_data_rank=None)
        like.to_local().copy_(piece.to_local())
    elif source.data_ptr() != tensor.data_ptr():
        tensor.copy_(source)


def groups_of(tensor: object) -> list[ProcessGroup]:
    """Return the process groups that share a DTensor, one per dimension of its mesh."""
    mesh: Any = getattr(tensor, "device_mesh", None)
    return [] if mesh is None else [mesh.get_group(dim) for dim in range(mesh.ndim)]


def check_home(owner: nn.Module, what: str) -> None:
    """Refuse a change of values that FSDP has gathered for a pass and will throw away.

    Args:
        owner: the module whose Parameter `values` is to change.
        what: the beginning of the error.

    Raises:
        DTypeError: `owner.values` is such a copy.
    """
    if "torch.distributed.fsdp" not in sys.modules or is_sharded(owner.values):
        return
    for shards in _shards():
        info = getattr(shards, "_module_info", None)
        if getattr(info, "module", None) is owner and getattr(info, "param_name", "") == "values":
            raise DTypeError(
                f"{what}: FSDP has gathered the values of {describe(owner)} for a forward or "
                "backward pass, and drops the copy afterwards: change the mask after "
                "optimizer.step(), or call reshard() of the module that fully_shard was applied to"
            )


def _shards() -> list[Any]:
    """Return what FSDP keeps of each Parameter that it shards."""
    # torch has no public way from a Parameter to the shards that it was gathered from.
    from torch.distributed import _composable_state as states

    found: list[Any] = []
    for state in list(getattr(states, "_module_state_mapping", {}).values()):
        for group in getattr(state(), "_fsdp_param_groups", None) or ():
            found += getattr(group, "fsdp_params", [])
    return found
