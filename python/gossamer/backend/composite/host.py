"""The CPU's functions for arrays of another device: arguments are copied there, results back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _on_another_device(x: Tensor) -> bool:
    return not x.is_cpu


class Host:
    """A submodule of `gossamer._core` for tensors of another device.

    What a function has written into its copies is copied back, and the arrays that it returns
    become tensors of the device. Each call waits for the device.

    Args:
        module: the submodule, or an object of one of its classes.
        device: where arrays that are returned go; None takes it from the arguments.

    Example:
        >>> from gossamer import _core
        >>> x = torch.tensor([3.0, -1.0, 2.0])
        >>> Host(_core.prox).top_k(x, 1)
        >>> x
        tensor([3., 0., 0.])
    """

    away: Callable[[Tensor], bool] = staticmethod(_on_another_device)
    """Whether the CPU cannot read a tensor, so that it is copied; tests copy all."""

    def __init__(self, module: Any, device: torch.device | None = None) -> None:
        self._module, self._device = module, device

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)
        if not callable(function):
            return function

        def call(*args: Any) -> Any:
            copies = _Copies()
            found = function(*copies.of(args))
            copies.put_back()
            device = copies.device or self._device
            if isinstance(function, type):
                return Host(found, device)
            return copies.returned(found, device)

        return call


class _Copies:
    """The arguments of one call on the CPU."""

    def __init__(self) -> None:
        self.device: torch.device | None = None
        self._copies: list[tuple[Tensor, Tensor, Tensor]] = []  # original, copy, copy as it was

    def of(self, x: Any) -> Any:
        """Return x with copies in the place of the tensors of the device."""
        if isinstance(x, list | tuple):
            return type(x)(self.of(item) for item in x)
        if not isinstance(x, Tensor) or not Host.away(x):
            return x
        self.device = x.device
        for original, copy, _ in self._copies:  # an output may be its own input
            if _place(original) == _place(x) and x.numel():
                return copy
        copy = torch.empty_like(x.detach(), device="cpu").copy_(x.detach())
        self._copies.append((x, copy, copy.clone()))
        return copy

    def put_back(self) -> None:
        """Copy what was written to where it belongs."""
        for original, copy, before in self._copies:
            if not _same_bytes(copy, before):
                original.detach().copy_(copy)

    def returned(self, x: Any, device: torch.device | None) -> Any:
        """Return x with tensors of the device in the place of arrays and of our copies."""
        if isinstance(x, tuple):
            return tuple(self.returned(item, device) for item in x)
        for original, copy, _ in self._copies:
            if x is copy:
                return original
        if device is None or not isinstance(x, np.ndarray):
            return x
        return torch.as_tensor(x).to(device)


def _place(x: Tensor) -> tuple[Any, ...]:
    return x.data_ptr(), x.dtype, x.shape, x.stride()


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.view(integer), b.view(integer))


__all__ = ["Host"]
