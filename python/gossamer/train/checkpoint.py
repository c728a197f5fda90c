"""Checkpoints: nested Python values and tensors in one safetensors file.

Tensors are stored as named arrays. All other values, and the places of the tensors, are JSON in the
file's string metadata, with a SHA-256 over both. See `gossamer.io.files`.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from gossamer.arguments import check
from gossamer.errors import CheckpointError, GossamerError
from gossamer.io import check_state
from gossamer.io.files import check_digest, read_file, write_file

CHECKPOINT = "checkpoint.safetensors"  # file name in the folder of a training
FORMAT = "gossamer-checkpoint-1"


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint, completely or not at all.

    Args:
        path: the file; an older file is replaced after the new one is on the disk.
        state: nested dicts, lists and tuples of tensors, numbers, strings, booleans and None; dict
            keys are strings or integers.

    Raises:
        CheckpointError: a value has another type, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> save_checkpoint(file, {"step": 3, "model": {"weight": torch.ones(2)}})
        >>> load_checkpoint(file)
        {'step': 3, 'model': {'weight': tensor([1., 1.])}}
    """
    check(save_checkpoint, locals())
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_flatten(state, "", tensors), sort_keys=False)
    try:
        write_file(Path(path), tensors, tree, {"format": FORMAT, "tree": tree})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be written: {error}; "
            "free space on the disk or choose another --out"
        ) from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint and verify it.

    Args:
        path: a file written by `save_checkpoint`.

    Returns:
        The nested state; its tensors are on the CPU and own their memory.

    Raises:
        CheckpointError: the file is missing, truncated or altered, or is not a checkpoint.
    """
    check(load_checkpoint, locals())
    path = Path(path)
    tensors, metadata = read_file(path, "checkpoint", "give the folder or file of a run")
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file but no checkpoint of a gossamer run "
            f"(format {metadata.get('format')!r}, needed {FORMAT!r}); give a run's checkpoint"
        )
    tree = metadata.get("tree", "")
    check_digest(path, "checkpoint", tensors, tree, metadata.get("sha256"))
    state: dict[str, Any] = _unflatten(json.loads(tree), tensors)
    return state


def restore(
    targets: Mapping[str, Any],
    states: Mapping[str, Any],
    source: str | Path,
    moving: Collection[str] = (),
) -> None:
    """Load states into several objects, into all of them or none.

    Args:
        targets: objects with `state_dict` and `load_state_dict`, by name.
        states: one state per name.
        source: origin of the states, for error messages.
        moving: names of modules whose tensor shapes may differ, because a recipe changes their
            masks; they check their state themselves.

    Raises:
        CheckpointError: names, keys, shapes or dtypes differ, or an object refuses its state; the
            objects do not change.
    """
    if set(targets) != set(states):
        raise CheckpointError(
            f"checkpoint {source} holds {sorted(states)}, needed are {sorted(targets)}; "
            "resume with the options of the run that wrote it"
        )
    for name, target in targets.items():
        if isinstance(target, torch.nn.Module):
            _check_module(name, target, states[name], source, name in moving)
    before = {name: _cloned(target.state_dict()) for name, target in targets.items()}
    changed: list[str] = []
    try:
        for name, target in targets.items():
            changed.append(name)
            target.load_state_dict(states[name])
    except (GossamerError, ValueError, TypeError, KeyError, RuntimeError) as error:
        for name in changed:
            targets[name].load_state_dict(before[name])
        raise CheckpointError(
            f"checkpoint {source} does not fit {changed[-1]} ({error}); "
            "resume with the options of the run that wrote it"
        ) from error


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        while name in tensors:  # keys may contain slashes
            name += "'"
        # A copy, because safetensors refuses tensors that share memory.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping):
        items = []
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise CheckpointError(
                    f"the state has the key {key!r} under {name or 'its root'}; "
                    "keys must be strings or integers"
                )
            items.append([key, _flatten(item, f"{name}/{key}" if name else str(key), tensors)])
        return {"dict": items}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_flatten(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"the state holds a {type(value).__name__} at {name}; a checkpoint stores tensors, "
        "numbers, strings, booleans, None, and dicts, lists and tuples of them"
    )


def _unflatten(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        # A copy has torch's alignment, so that a resumed run takes the same code paths.
        return tensors[content].clone()
    if kind == "dict":
        return {key: _unflatten(item, tensors) for key, item in content}
    items = [_unflatten(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _check_module(
    name: str, module: torch.nn.Module, state: Mapping[str, Any], source: str | Path, moves: bool
) -> None:
    if not moves:
        _check_tensors(name, module.state_dict(), state, source)
    try:
        check_state(module, state)
    except GossamerError as error:
        raise CheckpointError(
            f"checkpoint {source} does not fit {name} ({error}); "
            "resume with the options of the run that wrote it"
        ) from error


def _check_tensors(
    name: str, needed: Mapping[str, Any], given: Mapping[str, Any], source: str | Path
) -> None:
    for key in sorted(needed.keys() | given.keys()):
        if key not in given or key not in needed:
            raise CheckpointError(
                f"checkpoint {source} {'lacks' if key in needed else 'has an unknown'} {key} "
                f"in {name}; resume with the options of the run that wrote it"
            )
        here, there = needed[key], given[key]
        if here.shape != there.shape or here.dtype != there.dtype:
            raise CheckpointError(
                f"checkpoint {source} has {key} in {name} as {there.dtype} {list(there.shape)}, "
                f"needed is {here.dtype} {list(here.shape)}; "
                "resume with the options of the run that wrote it"
            )


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_cloned(item) for item in value)
    return value
