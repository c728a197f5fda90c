"""What `gossamer profile module:function` does, and how commands find a model."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import nn

from gossamer.errors import ArgumentError
from gossamer.profiling.measure import PATTERNS, profile
from gossamer.profiling.report import Profile
from gossamer.timing import threads as threads_of

DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


class Drawn(Protocol):
    """What can draw itself into a file."""

    def plot(self, path: str | Path) -> None:
        """Draw a PNG file."""


NEEDED = "give module:function or file.py:function, such as models.py:make"


def run(
    target: str,
    patterns: Sequence[str] | None,
    *,
    forward_only: bool,
    dtype: str,
    threads: int | None,
    rounds: int,
) -> Profile:
    """Import a function, call it, and profile the model that it returns.

    Args:
        target: "module:function" or "file.py:function"; it takes no arguments and returns
            (model, example).
        patterns: to time; None for the default ones.
        forward_only: leave out the backward pass.
        dtype: "float32", or "bfloat16" for torch's autocast.
        threads: number of threads, None for torch's choice.
        rounds: measured calls of each layer.

    Returns:
        The profile.

    Raises:
        ArgumentError: the function cannot be found, or does not return a model and an example.
    """
    if dtype not in DTYPES:
        raise ArgumentError(f"profile got dtype {dtype!r}; give one of {', '.join(DTYPES)}")
    model, example = load(target)
    cast = DTYPES[dtype]
    with threads_of(threads), torch.autocast("cpu", cast) if cast else nullcontext():
        return profile(
            model, example, patterns or PATTERNS, backward=not forward_only, rounds=rounds
        )


def load(target: str) -> tuple[nn.Module, Any]:
    """Import a function that returns a model and an example, and call it.

    Args:
        target: as in `run`.

    Raises:
        ArgumentError: as in `run`. Errors of the function itself pass.
    """
    found = _called(target)
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], nn.Module)):
        raise ArgumentError(
            f"{target} returned a {type(found).__name__}; it must return (model, example): an "
            "nn.Module, and a tensor, a tuple of arguments or a dict of keyword arguments"
        )
    return found


def load_evaluated(target: str) -> tuple[nn.Module, Callable[[nn.Module], Any]]:
    """Import a function that returns a model and what evaluates it, and call it.

    Args:
        target: as in `run`.

    Raises:
        ArgumentError: as in `run`. Errors of the function itself pass.
    """
    found = _called(target)
    pair = isinstance(found, tuple) and len(found) == 2
    if not (pair and isinstance(found[0], nn.Module) and callable(found[1])):
        raise ArgumentError(
            f"{target} returned a {type(found).__name__}; it must return (model, evaluate): an "
            "nn.Module, and a function of it that returns one number"
        )
    return found  # type: ignore[no-any-return]


def _called(target: str) -> Any:
    where, colon, name = target.rpartition(":")
    if not (colon and where and name):
        raise ArgumentError(f"the command got {target!r}; {NEEDED}")
    function = getattr(_module(where), name, None)
    if not callable(function):
        raise ArgumentError(f"{where} has no function {name!r}; {NEEDED}")
    return function()


def draw(found: Drawn, picture: Path) -> None:
    """Write the picture; an ArgumentError says why it cannot be written."""
    try:
        found.plot(picture)
    except OSError as error:
        raise ArgumentError(f"{picture} cannot be written: {error.strerror}") from None


def _module(where: str) -> ModuleType:
    path = Path(where)
    if path.suffix == ".py":
        if not path.is_file():
            raise ArgumentError(f"there is no file {where}; {NEEDED}")
        folder = str(path.resolve().parent)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ArgumentError(f"{where} is no Python file; {NEEDED}")
        module = importlib.util.module_from_spec(spec)
        # As for a script: what lies beside it can be imported, and pickles find it by name.
        sys.path.insert(0, folder)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return module
    sys.path.insert(0, "")
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(f"{error.name}.")):
            raise ArgumentError(f"there is no module {where!r}; {NEEDED}") from None
        raise
