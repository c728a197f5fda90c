"""Arguments as POT takes them: lists, integers, empty weights, parameters of one or two."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import DTypeError, ProblemError

GEOMLOSS = tuple(f"geomloss{end}" for end in ("", "_auto", "_tensorized", "_online", "_multiscale"))
# Options of single POT solvers that change no solution.
TUNING = ("tau", "print_period", "epsilon0", "numInnerItermax")


def array(values: Any, name: str) -> Any:
    """A float array or tensor, of lists and integers too.

    Raises:
        DTypeError: `values` is neither an array nor a list.
    """
    if isinstance(values, list | tuple):
        try:
            return np.asarray(values, dtype=float)
        except (TypeError, ValueError) as error:
            raise DTypeError(f"{name} is a list that is no array of numbers: {error}") from None
    if not isinstance(values, Tensor | np.ndarray) or values.ndim == 0:
        raise DTypeError(
            f"{name} is a {type(values).__name__}; an array, a tensor or a list is needed"
        )
    if isinstance(values, Tensor):
        whole = not values.is_floating_point() and not values.is_complex()
        return values.to(torch.get_default_dtype()) if whole else values
    return values.astype(float) if values.dtype.kind in "biu" else values


def weights(values: Any, name: str, like: Any) -> Any:
    """Weights, or None for uniform ones: POT writes an empty list. Lists become like the cost."""
    found = None if values is None else array(values, name)
    if found is None or len(found) == 0:
        return None
    listed = isinstance(values, list | tuple) and isinstance(like, Tensor)
    return torch.as_tensor(found, dtype=like.dtype) if listed else found


def pair(parameter: Any, name: str) -> tuple[float, float]:
    """POT's parameter of one or two numbers, given as a number, a list, a tuple or an array.

    Raises:
        ProblemError: it has another number of entries.
        DTypeError: an entry is no number.
    """
    try:
        found = [float(value) for value in np.atleast_1d(_plain(parameter)).tolist()]
    except (TypeError, ValueError) as error:
        raise DTypeError(
            f"{name} is {parameter!r:.80}; a number is needed, or one for each marginal"
        ) from error
    if len(found) not in (1, 2):
        raise ProblemError(f"{name} has {len(found)} entries; give a number, or a pair of them")
    return found[0], found[-1]


def _plain(parameter: Any) -> Any:
    if isinstance(parameter, Tensor):
        return parameter.detach().cpu().numpy()
    if isinstance(parameter, list | tuple):
        return [float(value) for value in parameter]
    return parameter


def chosen(method: Any, known: tuple[str, ...]) -> str:
    """The name of a method in lower case.

    Raises:
        ProblemError: POT has no such method.
    """
    name = str(method).lower()
    if name not in known:
        raise ProblemError(f"method is {method!r:.80}; choose one of {', '.join(known)}")
    return name


def say(what: str, kind: type[Warning] = UserWarning) -> None:
    """Warn at the line that called the package."""
    inside, level, frame = str(Path(__file__).parent), 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        level, frame = level + 1, frame.f_back
    warnings.warn(what, kind, stacklevel=level)


def check_tuning(options: dict[str, Any]) -> None:
    """Accept the tuning of POT's single solvers, which changes no solution.

    Raises:
        DTypeError: an option that POT does not have.
    """
    unknown = [name for name in options if name not in TUNING]
    if unknown:
        raise DTypeError(
            f"got the unknown option {unknown[0]!r:.80}; beside the named arguments only "
            f"{', '.join(TUNING)} are taken"
        )
