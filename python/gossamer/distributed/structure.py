"""Masks on several processes: whether all hold the same, and how to make them the same.

torch shards and reduces values, but neither sends nor compares buffers: processes whose masks
differ train garbage without an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.arguments import check
from gossamer.errors import ArgumentError, StructureError
from gossamer.nn.layers.base import MaskedLayer
from gossamer.weight import SparseWeight

__all__ = ["broadcast_structure", "check_same_structure", "mask_checksums"]

_ADVICE = (
    "build the model from the same seed or file on every process, or call "
    "gossamer.distributed.broadcast_structure(model) on all of them before training"
)


def check_same_structure(model: nn.Module, group: Any = None) -> None:
    """Check that all processes hold the same masks; all of them must call this.

    A hash of every integer buffer of every masked layer is gathered; a recipe does so when it is
    attached and after each change of a mask. Masks that a layer selects anew in each forward pass
    are left out, because they follow from the weights.

    Args:
        model: any module with `SparseWeight` or fixed masks; sharded by FSDP or not.
        group: a process group of torch.distributed; None is all processes.

    Raises:
        StructureError: on every process, with the name of the first layer that differs.
        ArgumentError: the processes are not connected.
    """
    check(check_same_structure, locals())
    _check_connected("check_same_structure")
    compare(dict(_holders(model.named_modules())), group)


def compare(holders: Mapping[str, nn.Module], group: Any = None) -> None:
    """Compare some modules, by name, that hold masks; see `check_same_structure`."""
    from torch import distributed as dist

    size = dist.get_world_size(group)
    if size == 1:
        return
    mine = {name: _hash(module) for name, module in holders.items()}
    every: list[dict[str, str]] = [{}] * size
    dist.all_gather_object(every, mine, group=group)
    names = [name for name in every[0] if any(one.get(name) != every[0][name] for one in every)]
    names += [name for one in every[1:] for name in one if name not in every[0]]
    if not names:
        broken = [name for name, found in mine.items() if found.startswith("!")]
        if broken:
            raise StructureError(_broken(broken[0], list(range(size))))
        return
    first = names[0]
    ranks = dist.get_process_group_ranks(group)
    hit = [rank for rank, one in zip(ranks, every, strict=True) if one.get(first, "")[:1] == "!"]
    if hit:
        raise StructureError(_broken(first, hit))
    other = next(
        r for r, one in zip(ranks, every, strict=True) if one.get(first) != every[0].get(first)
    )
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    raise StructureError(
        f"the masks of the processes differ: {first!r}{more} is another on rank {other} than on "
        f"rank {ranks[0]}; {_ADVICE}"
    )


@torch.no_grad()
def broadcast_structure(model: nn.Module, group: Any = None, source: int = 0) -> None:
    """Give all processes the masks of one; all of them must call this.

    Values do not change: those of a model under `fully_shard` then stand for the positions of the
    new mask, and DistributedDataParallel sends its own.

    Args:
        model: a module with the same layers and patterns on every process.
        group: a process group of torch.distributed; None is all processes.
        source: rank of the process whose masks are taken.

    Raises:
        StructureError: on every process, if the layers keep different numbers of entries; nothing
            changes then.
        ArgumentError: the processes are not connected.
    """
    check(broadcast_structure, locals())
    _check_connected("broadcast_structure")
    from torch import distributed as dist

    holders = dict(_holders(model.named_modules()))
    shapes = {
        name: {key: (tuple(b.shape), str(b.dtype)) for key, b in _buffers(module)}
        for name, module in holders.items()
    }
    every: list[dict[str, object]] = [{}] * dist.get_world_size(group)
    dist.all_gather_object(every, shapes, group=group)
    for rank, theirs in zip(dist.get_process_group_ranks(group), every, strict=True):
        for name in (*every[0], *theirs):
            if theirs.get(name) != every[0].get(name):
                raise StructureError(
                    f"broadcast_structure: {name!r} on rank {rank} has no mask like that of the "
                    f"first process ({theirs.get(name)}, {every[0].get(name)}); build the same "
                    "layers with the same patterns everywhere"
                )
    for module in holders.values():
        state = {key: buffer.clone() for key, buffer in _buffers(module)}
        for tensor in state.values():
            dist.broadcast(tensor, source, group=group)
        # As from a file: checked, sealed, and the transpose is built again.
        module.load_state_dict(state, strict=False)


def mask_checksums(holders: Iterable[nn.Module]) -> tuple[int | None, ...]:
    """Return numbers that change when a mask of these modules does; they cost nothing."""
    guards = (getattr(module, "_guard", None) for module in holders)
    return tuple(None if guard is None else guard.checksum for guard in guards)


def holders_of(layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the modules inside some layers that hold a mask, by name."""
    found: dict[str, nn.Module] = {}
    for name, layer in layers.items():
        inside = ((f"{name}.{own}".strip("."), module) for own, module in layer.named_modules())
        found.update(_holders(inside))
    return found


def _holders(named: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that hold a mask which stays until it is changed."""
    for name, module in named:
        holds = isinstance(module, SparseWeight | MaskedLayer) and any(_buffers(module))
        if holds and not getattr(module, "reselect_each_forward", False):
            yield name, module


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the buffers of a module itself that a state dict has."""
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield name, buffer


def _hash(module: nn.Module) -> str:
    """Return a hash of the buffers; it begins with "!" if they were written over."""
    try:
        _ = module.structure
    except StructureError:
        return "!"
    digest = hashlib.blake2b(digest_size=16)
    for name, buffer in _buffers(module):
        content = buffer.detach().cpu().contiguous()
        digest.update(f"{name} {content.dtype} {tuple(content.shape)}".encode())
        digest.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_connected(who: str) -> None:
    from torch import distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise ArgumentError(
            f"{who} needs processes that are connected: start them with torchrun, and call "
            "torch.distributed.init_process_group first"
        )


def _broken(name: str, ranks: list[int]) -> str:
    return (
        f"the mask of {name!r} was written over on rank {', '.join(map(str, ranks))}, as by the "
        f"broadcast of all buffers that DistributedDataParallel begins with; {_ADVICE}"
    )
