"""What a folder, a file or a state dict holds of a model: tensors, and the description of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from gossamer.errors import CheckpointError, DTypeError
from gossamer.io.checking import check_names
from gossamer.io.files import check_digest, read_file
from gossamer.io.saving import WEIGHTS
from gossamer.nn.description import FORMAT
from gossamer.nn.foreign import METHOD

_INDEX = "model.safetensors.index.json"
_ADVICE = "give a folder that gossamer.save has written"


class Saved(NamedTuple):
    """What a folder or file holds."""

    state: dict[str, Any]
    """The state dict."""
    description: dict[str, Any]
    """The description of the model, see `gossamer.nn.description`; "layers" is None if unknown."""
    place: Path | None
    """The folder; None for a state dict."""


def read(source: str | Path | Mapping[str, Any]) -> Saved:
    """Read a folder, a file or a state dict, and compare its checksum.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if isinstance(source, Mapping):
        check_names(source)
        return Saved(dict(source), {"layers": None}, None)
    try:
        path = Path(source)
    except TypeError:
        raise DTypeError(
            f"load got a {type(source).__name__} as source; give a folder, a file or a state dict"
        ) from None
    return read_files(_files(path), path if path.is_dir() else path.parent)


def read_files(files: Sequence[Path], folder: Path) -> Saved:
    """Read the files of one model, see `read`.

    Args:
        files: the safetensors files.
        folder: where a `config.json` of transformers may be.
    """
    state: dict[str, Tensor] = {}
    description: dict[str, Any] = {"layers": None}
    for file in files:
        tensors, metadata = read_file(file, "model", _ADVICE)
        text = metadata.get("gossamer")
        if text is not None or "sha256" in metadata:
            check_digest(file, "model", tensors, text or "", metadata.get("sha256"))
            description = _parsed(text or "", file)
        state |= tensors
    if description["layers"] is None:
        description = _of_config(folder) or description
    return Saved(state, description, folder)


def check_description(description: Any, where: object) -> dict[str, Any]:
    """Return a description whose parts have the right kinds.

    Raises:
        CheckpointError: it has another format.
    """
    found = description if isinstance(description, Mapping) else {}
    layers, tied = found.get("layers", ()), found.get("tied")
    known = (layers is None or isinstance(layers, Mapping)) and isinstance(tied, Mapping)
    if found.get("format") != FORMAT or not known:
        raise CheckpointError(
            f"{where} describes its layers in the format {found.get('format')!r:.80}, needed is "
            f"{FORMAT!r}; load it with the version that saved it"
        )
    return dict(found)


def _files(path: Path) -> list[Path]:
    index = path / _INDEX
    if not path.is_dir():
        return [path]
    if (path / WEIGHTS).exists() or not index.exists():
        return [path / WEIGHTS]
    try:
        shards = json.loads(index.read_text("utf-8"))["weight_map"].values()
        names = sorted({Path(str(name)).name for name in shards})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} cannot be read ({error}); use another copy") from error
    return [path / name for name in names]


def _parsed(text: str, where: Path) -> dict[str, Any]:
    try:
        return check_description(json.loads(text), where)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} has an unreadable description: {error}") from error


def _of_config(folder: Path) -> dict[str, Any] | None:
    """Return the description that a configuration of transformers holds, None if there is none."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
        method = config.get("quantization_config")
        if not isinstance(method, Mapping) or method.get("quant_method") != METHOD:
            return None
        made = {"transformers": config["architectures"][0]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error!r:.200}); use another copy"
        ) from error
    return {**check_description(method, file), "model": made, "training": False}


__all__ = ["Saved", "check_description", "read", "read_files"]
