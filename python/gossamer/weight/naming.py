"""The name of a module in the model that is being called, for errors."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from types import FrameType

from torch import nn


def describe(module: nn.Module) -> str:
    """Return what a module is, and its name in the outermost model on the call stack that has it.

    A module does not know its name, and an error is rare enough to look for it.

    Example:
        >>> describe(nn.ReLU(inplace=True))
        'ReLU(inplace=True)'
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit.trace, which an error stops anyway
        what = type(module).__name__
        with suppress(RuntimeError):  # a recorder has taken the numbers out of its tensors
            what = f"{what}({module.extra_repr()})"
    frame: FrameType | None = sys._getframe(1)
    callers = []
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, nn.Module):
            callers.append(caller)
        frame = frame.f_back
    for root in reversed(callers):
        for name, found in root.named_modules():
            if found is module and name:
                return f"{name}: {what}"
    return what


__all__ = ["describe"]
