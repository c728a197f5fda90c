"""Numbers in buffers, read without waiting for the device that holds them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

_KNOWN = "_known_numbers"


def number_in(owner: nn.Module, name: str) -> float:
    """Return the number in a buffer of a module; NaN on the meta device.

    Reading a device makes the program wait for all that was asked of it. So the number is kept
    beside the buffer, and read again only after the buffer was written to or replaced.

    Args:
        owner: the module.
        name: name of a buffer of one element.

    Example:
        >>> import torch
        >>> layer = nn.Module()
        >>> layer.register_buffer("share", torch.tensor(0.5))
        >>> number_in(layer, "share")
        0.5
    """
    buffer: Tensor = getattr(owner, name)
    if buffer.is_meta:
        return math.nan
    if buffer.is_cpu or buffer.is_inference():  # which has no version
        return float(buffer.item())
    known: dict[str, Any] = owner.__dict__.setdefault(_KNOWN, {})
    found, version, number = known.get(name, (None, -1, 0.0))
    if found is not buffer or version != buffer._version:
        number = float(buffer.item())
        known[name] = buffer, buffer._version, number
    return float(number)


__all__ = ["number_in"]
