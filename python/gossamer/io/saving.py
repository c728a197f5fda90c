"""save(): a model in a folder, as safetensors with structure, patterns and what builds it again."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from gossamer.arguments import check
from gossamer.distributed.groups import by_first_process, is_first_process
from gossamer.errors import CheckpointError, DTypeError
from gossamer.io.factories import name_of
from gossamer.io.files import write_file
from gossamer.nn.description import describe_model
from gossamer.nn.foreign import is_pretrained, told
from gossamer.nn.layers.base import MaskedLayer
from gossamer.weight import SparseWeight
from gossamer.weight.sharding import class_of, gathered, is_sharded

WEIGHTS = "model.safetensors"


def save(
    model: nn.Module,
    folder: str | Path,
    factory: str | Callable[..., nn.Module] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Save a model of sparse layers, dense layers or both, without pickle.

    `model.safetensors` holds the state dict, a description of the sparse layers, and a checksum
    over both. It is replaced in one step: the folder holds a complete model or the one before. A
    model of transformers also gets its `config.json`, which makes `from_pretrained` load it too,
    see `gossamer.integrations.transformers`.

    Of a model that `fully_shard` has sharded, all processes must call this: the tensors are
    gathered one by one, and the first process writes them.

    Args:
        model: any module; wrappers (DistributedDataParallel, `torch.compile`) are left out.
        folder: the folder; it is made if it is missing.
        factory: the class or function, or its name "module:name", that builds the dense model
            when `load` gets no model. It must be a class of `nn.Module`, or a function that is
            annotated to return one. A model of transformers needs none.
        kwargs: the factory's arguments, JSON values.

    Raises:
        CheckpointError: the folder cannot be written, or a tensor is without memory; an earlier
            model in it does not change.
        StructureError: the structure of a layer was written over.
        ArgumentError: `load` could not call the factory.

    Example:
        >>> import gossamer, tempfile
        >>> model = torch.nn.Sequential(gossamer.SparseLinear(8, 4, pattern="2:4"))
        >>> folder = tempfile.mkdtemp()
        >>> gossamer.save(model, folder)
        >>> dense = torch.nn.Sequential(torch.nn.Linear(8, 4))
        >>> str(gossamer.load(folder, dense)[0].pattern)
        '2:4'
    """
    check(save, locals())
    model, folder = unwrapped(model), Path(folder)
    for module in model.modules():  # refuses what was written over
        if isinstance(module, MaskedLayer):
            _ = module.nnz
        elif isinstance(module, SparseWeight):
            _ = module.structure, module.transposed
    description = describe_model(model)
    config = None
    if factory is not None:
        description["model"] = {"factory": name_of(factory), "kwargs": dict(kwargs or {})}
    elif is_pretrained(model):
        description["model"] = {"transformers": class_of(model).__name__}
        config = told(copy.deepcopy(model.config), description)
        config.architectures = [class_of(model).__name__]
    description["training"] = model.training
    text = _json(description)
    tensors = _tensors(model, description["tied"])
    metadata = {"format": "pt", "gossamer": text}

    def write() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if config is not None:
                config.save_pretrained(folder)
                if (generation := getattr(model, "generation_config", None)) is not None:
                    generation.save_pretrained(folder)
            write_file(folder / WEIGHTS, tensors, text, metadata)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder} cannot be written: {error}; free space on the disk or choose another "
                "folder"
            ) from error

    if any(map(is_sharded, model.parameters())):
        by_first_process(write)
    else:
        write()


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that DistributedDataParallel, DataParallel or torch.compile wraps."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _is_repeated(name: str, tied: Mapping[str, str]) -> bool:
    """Whether another name holds a tensor already."""
    return any(name == other or name.startswith(f"{other}.") for other in tied)


def _tensors(model: nn.Module, tied: Mapping[str, str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in model.state_dict().items():
        if _is_repeated(name, tied):
            continue
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{name} of the state is a {type(value).__name__}; only tensors are stored: have "
                "get_extra_state return one"
            )
        if value.is_meta or value.layout is not torch.strided:
            raise CheckpointError(
                f"{name} is on the meta device or is no dense tensor; a model is saved with all "
                "its numbers: call to_empty() and initialise it, or convert with .to_dense()"
            )
        whole = gathered(value.detach())
        if is_sharded(value) and not is_first_process():
            continue  # it took part in the gathering
        tensor = whole.cpu().contiguous()
        # safetensors refuses tensors that share memory.
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        found[name] = tensor
    return found


def _json(description: Mapping[str, Any]) -> str:
    try:
        return json.dumps(description)
    except (TypeError, ValueError) as error:
        raise DTypeError(
            f"kwargs or an option cannot be stored: {error}; give numbers, texts, booleans, None, "
            "and lists and dicts of them"
        ) from None


__all__ = ["WEIGHTS", "save", "unwrapped"]
