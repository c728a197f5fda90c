"""The dtypes of the verbs under torch.autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.errors import DTypeError


def autocast(*tensors: Tensor | None, device: str = "cpu") -> Any:
    """Cast float32 tensors to the dtype of the active autocast.

    float64 stays, as in every torch op under autocast.

    Args:
        tensors: Tensors to cast, or None.
        device: The device type whose autocast is active.

    Returns:
        A list of the tensors, with None where None was given.

    Raises:
        DTypeError: Autocast on the CPU is to float16, for which the CPU has no kernel.
    """
    dtype = torch.get_autocast_dtype(device)
    if dtype == torch.float16 and device == "cpu":
        raise DTypeError(
            "autocast to float16 was asked for; the kernels have bfloat16: use "
            "torch.autocast('cpu', dtype=torch.bfloat16)"
        )
    return [
        t if t is None or t.dtype == torch.float64 or not t.is_floating_point() else t.to(dtype)
        for t in tensors
    ]


def is_autocast(x: Tensor) -> bool:
    """Return whether autocast is enabled on the device of x."""
    if x.is_cpu:
        return torch.is_autocast_enabled("cpu")
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def add_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    """Return y + b; under autocast b has the dtype of y."""
    if bias is None:
        return y
    return y + (bias.to(y.dtype) if is_autocast(y) else bias)


def without_autocast(x: Tensor) -> torch.autocast:
    """Return a context that disables autocast on the device of x."""
    device = x.device.type
    known = torch.amp.is_autocast_available(device)
    return torch.autocast(device if known else "cpu", enabled=False)
