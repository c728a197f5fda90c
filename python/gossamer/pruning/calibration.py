"""Calls of a given model on given data: what it raises there is told with the data's shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from gossamer.backend import check_array
from gossamer.errors import ArgumentError, GossamerError


def calibrated(inputs: Tensor, who: str) -> None:
    """Raise unless the calibration data are a dense tensor with an entry, on the CPU."""
    check_array(inputs, f"{who}: inputs", filled=True, device=True)


def called(
    model: nn.Module, inputs: Sequence[Any], who: str, through: Callable[..., Any] | None = None
) -> Any:
    """Return what a model returns for its inputs, or what a function that calls it returns.

    Raises:
        ArgumentError: the model raises an error for them.
    """
    try:
        return (through or model)(*inputs)
    except GossamerError:
        raise
    except Exception as error:  # a forward may raise anything
        shapes = [list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in inputs]
        raise ArgumentError(
            f"{who}: {type(model).__name__} raises {type(error).__name__} for inputs of "
            f"{', '.join(map(str, shapes)) or 'nothing'} ({str(error).strip():.200}); give what "
            "its forward takes"
        ) from error


def step_of(module: nn.Module, x: Any, name: str, who: str) -> Any:
    """Return what one module of a sequence returns; see `called`."""
    return called(module, (x,), f"{who}, layer {name!r}")
