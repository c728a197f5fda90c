"""Files of tensors and one text: safetensors with a SHA-256 over both, written in one step.

A file is written under another name, flushed to the disk and renamed, so that the path always holds
a complete file or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from gossamer.errors import CheckpointError


def write_file(
    path: Path, tensors: Mapping[str, Tensor], text: str, metadata: Mapping[str, str]
) -> None:
    """Write a file, completely or not at all.

    Args:
        path: the file; an older file is replaced after the new one is on the disk.
        tensors: tensors by name, on the CPU, contiguous, which share no memory.
        text: what the checksum covers beside the tensors; it is in `metadata` too.
        metadata: texts of the header; `sha256` is added.

    Raises:
        OSError, SafetensorError: the file cannot be written; `path` does not change.
    """
    content = save_tensors(dict(tensors), {**metadata, "sha256": digest(tensors, text)})
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def read_file(path: Path, what: str, advice: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file; the checksum is not compared.

    Args:
        path: the file.
        what: what it is, for errors.
        advice: what to give instead, for errors.

    Raises:
        CheckpointError: the file is missing, truncated, or no safetensors file.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{what} {path} cannot be read: {why}; {advice}") from error
    try:
        tensors = load_tensors(content)  # rejects a header that does not fit the bytes after it
        (length,) = struct.unpack_from("<Q", content)
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError, struct.error) as error:
        raise CheckpointError(
            f"{what} {path} is not a complete safetensors file ({error}); it was truncated or "
            "altered: use another copy"
        ) from error
    return tensors, metadata


def check_digest(
    path: Path, what: str, tensors: Mapping[str, Tensor], text: str, sha256: str | None
) -> None:
    """Raise CheckpointError unless tensors and text have this checksum."""
    if sha256 != digest(tensors, text):
        raise CheckpointError(
            f"{what} {path} does not match its checksum; its bytes were altered: use another copy"
        )


def digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Return the SHA-256 of a text and of the names, dtypes, shapes and bytes of tensors."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"\0{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        if tensor.numel():
            found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file in one step.

    Args:
        path: the file to replace or create.
        write: function that writes the new content to a given path.

    Raises:
        OSError: the content cannot be written; `path` does not change.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The folder stores the new name and has its own cache.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
