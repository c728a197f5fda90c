"""Kernels that were registered for a pattern, in the place of the kernels of panels.

See `gossamer.patterns.register_operator`. What they return is checked; what they raise is named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import PatternError
from gossamer.patterns import operator_of
from gossamer.weight import SparseWeight

__all__ = ["own_kernel"]


def own_kernel(verb: str, weight: object) -> Callable[..., Any] | None:
    """Return the kernel that is registered for a weight's pattern; None runs those of panels.

    Args:
        verb: "spmm", "spmm_t" or "sddmm".
        weight: the weight; anything else has no kernel.
    """
    if not isinstance(weight, SparseWeight):
        return None  # the caller refuses it
    function = operator_of(weight.pattern, verb)
    if function is None:
        return None

    def run(*args: Any) -> Any:
        inputs = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in args]
        who = f"the {verb} that is registered for pattern {weight.pattern}"
        if torch.compiler.is_compiling():  # what it raises there is the compiler's
            y = function(*inputs, weight)
        else:
            try:
                y = function(*inputs, weight)
            except Exception as error:
                text = f"{who} raised {type(error).__name__}: {error!s:.300}"
                raise PatternError(text) from error
        last = {"spmm": weight.shape[0], "spmm_t": weight.shape[1], "sddmm": weight.nnz}[verb]
        leading = () if verb == "sddmm" else tuple(inputs[0].shape[:-1])
        given = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        if given != (*leading, last):
            raise PatternError(f"{who} returned {given}; it must return {(*leading, last)}")
        if y.dtype != inputs[0].dtype and not torch.is_autocast_enabled(y.device.type):
            raise PatternError(f"{who} returned {y.dtype}; its input is {inputs[0].dtype}")
        return y if inputs[0] is args[0] else y.detach().numpy()

    return run
