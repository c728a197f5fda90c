"""Several processes on this machine, connected by gloo, for the tests of `gossamer.distributed`."""

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# What the processes import is imported once, by the server that they are forked from.
PRELOAD = [
    "torch", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed.checkpoint",
    "torch.distributed.checkpoint.state_dict", "torch.distributed.tensor.parallel",
    "torch.distributed.tensor.debug", "gossamer.train", "gossamer.recipes",
    "gossamer.distributed", "support.ranks_cases", "support.ranks_course",
]  # fmt: skip


def run(world: int, function: Callable[..., Any], *args: Any, killed: bool = False) -> list[Any]:
    """Call function(rank, *args) in `world` processes, and return what each returns.

    Args:
        world: number of processes.
        function: a function of a module.
        args: its further arguments, the same everywhere.
        killed: whether the processes are expected to be killed; they return nothing then.
    """
    mp.get_context("forkserver").set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        try:
            mp.start_processes(
                _entry, (world, folder, function, args), nprocs=world, start_method="forkserver"
            )
        except mp.ProcessExitedException:
            if not killed:
                raise
            return []
        assert not killed
        found = Path(folder)
        return [torch.load(found / str(rank), weights_only=False) for rank in range(world)]


def _entry(
    rank: int, world: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    try:
        torch.save(function(rank, *args), Path(folder, str(rank)))
    finally:
        dist.destroy_process_group()


def error_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Return the class and text of what a call raises."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"
