"""Gradient memory that is used again.

A matrix above 32 MiB is mapped by the allocator for each step and unmapped after it, and then each
of its pages costs a fault: more than the sums that are written to it. Memory from here comes back
when the last tensor on it is freed, and serves the next step.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch
from torch import Tensor


class GradientMemory:
    """Blocks of memory for the gradients of one layer.

    Example:
        >>> import torch
        >>> memory = GradientMemory()
        >>> first = memory.empty_like(torch.zeros(300, 300))
        >>> address = first.data_ptr()
        >>> del first
        >>> memory.empty_like(torch.zeros(300, 300)).data_ptr() == address
        True
    """

    def __init__(self, most: int = 3) -> None:
        self._free: list[np.ndarray] = []
        self._most = most

    def empty_like(self, x: Tensor) -> Tensor:
        """Return an uninitialised contiguous tensor of the shape and dtype of x."""
        size = x.numel() * x.element_size()
        if not x.is_cpu or size < 1 << 16:
            return torch.empty_like(x, memory_format=torch.contiguous_format)
        block = self._take(size)
        handed = block[:]
        # torch holds `handed` until the tensor's storage is freed.
        weakref.finalize(handed, self._give_back, self._free, self._most, block).atexit = False
        return torch.from_numpy(handed).view(x.dtype).view(x.shape)

    def _take(self, size: int) -> np.ndarray:
        for i, block in enumerate(self._free):
            if len(block) == size:
                return self._free.pop(i)
        return np.empty(size, dtype=np.uint8)

    @staticmethod
    def _give_back(free: list[np.ndarray], most: int, block: np.ndarray) -> None:
        free.append(block)
        del free[:-most]

    def __deepcopy__(self, memo: object) -> GradientMemory:
        return GradientMemory(self._most)

    def __reduce__(self) -> tuple[type[GradientMemory], tuple[int]]:
        return GradientMemory, (self._most,)


__all__ = ["GradientMemory"]
