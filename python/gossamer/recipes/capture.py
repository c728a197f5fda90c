"""Capture: what a layer saw in a step, from which slabs of its dense gradient are computed.

dW[rows] = sum over calls of dY[:, rows]^T X. The input and the gradient of the output are kept of
the calls of one step only, and no more than a slab of rows of the dense gradient exists at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.recipes.slots import RowScores


class Capture:
    """A forward hook that keeps the pairs (X, dY) of a layer while it is wanted.

    A copied or pickled layer has a capture that does nothing.

    Args:
        parameter: of the layer; when it has no gradient yet, earlier pairs are of no step.
        shape: (rows, cols) of the dense gradient.
        wanted: whether this step's pairs are wanted.
    """

    def __init__(
        self,
        parameter: nn.Parameter | None,
        shape: tuple[int, int],
        wanted: Callable[[], bool],
    ) -> None:
        self.parameter = parameter
        self.shape = shape
        self.wanted = wanted
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        """Called behind every forward pass."""
        if self.parameter is None or not y.requires_grad or not self.wanted():
            return
        gradient = self.parameter.grad
        if gradient is None or not gradient.any():
            # Gradients that were thrown away (a skipped step) belong to no step.
            self.pairs.clear()
        x = args[0].detach()
        y.register_hook(lambda g: self.pairs.append((x, g.detach())))  # type: ignore[no-untyped-call]

    def __reduce__(self) -> Any:
        return Capture, (None, self.shape, _never)

    def scores(self, average: Callable[[Tensor], Tensor]) -> RowScores | None:
        """The magnitudes of the dense gradient, a slab of rows at a time.

        Args:
            average: makes a slab the mean over all processes, in place.

        Returns:
            None when no process has seen a gradient.
        """
        if not average(torch.tensor(float(len(self.pairs)))).item():
            return None
        like = torch.float32 if self.parameter is None else self.parameter.dtype
        dtype = torch.promote_types(like, torch.float32)
        pairs = [
            (x.reshape(-1, x.shape[-1]).to(dtype), g.reshape(-1, g.shape[-1]).to(dtype))
            for x, g in self.pairs
        ]

        def slab(begin: int, end: int) -> Tensor:
            total = torch.zeros(end - begin, self.shape[1], dtype=dtype)
            for x, g in pairs:
                total.addmm_(g[:, begin:end].t(), x)
            return average(total).abs_()

        return slab


def _never() -> bool:
    return False
