"""Capture: inputs and output gradients of a layer in one step, for slabs of its dense gradient.

dW[rows] = sum over calls of dY[:, rows]^T X. Inputs and output gradients are kept for the calls of
one evaluation of the gradients only, and only one slab of rows of the dense gradient exists at a
time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.nn.layers.sparse import matrix_gradient
from gossamer.recipes.base.compiled_capture import captured, number
from gossamer.recipes.base.slots import RowScores
from gossamer.weight.sharding import whole

Product = Callable[[Tensor, Tensor, int, int], Tensor]


class Capture:
    """A forward hook that keeps the pairs (X, dY) of a layer in the steps that need them.

    A copied or pickled layer has a capture that does nothing. In a graph of torch.compile it is an
    operator, see `compiled_capture`.

    Args:
        parameter: the layer's Parameter; if its `.grad` is None or zero, pairs captured so far
            belong to an abandoned step and are dropped.
        shape: (rows, cols) of the dense gradient.
        wanted: returns whether to capture in this step.
        product: rows of the dense gradient from x, its output gradient, and a range of rows.

    Attributes:
        coming: pairs of gradients that are not complete yet.
        pairs: those of this step's gradients, since `settle`.
    """

    def __init__(
        self,
        parameter: nn.Parameter | None,
        shape: tuple[int, int],
        wanted: Callable[[], bool],
        product: Product = matrix_gradient,
    ) -> None:
        self.parameter = parameter
        self.shape = shape
        self.wanted = wanted
        self.product = product
        self.coming: list[tuple[Tensor, Tensor]] = []
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.number = -1 if parameter is None else number(self)

    def __call__(
        self, layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], y: Tensor
    ) -> Tensor | None:
        """Called after every forward pass; returns what takes the place of y, if anything."""
        if self.number < 0 or not y.requires_grad:
            return None
        x = (args[0] if args else kwargs["input"]).detach()
        if torch.compiler.is_compiling():
            return captured(y, x, self.number)
        if self.wanted():
            # What FSDP has gathered for this pass may have gradients that are not yet reduced.
            self.begin(getattr(layer, "entries", None))
            y.register_hook(lambda g: self.coming.append((x, g.detach())))  # type: ignore[no-untyped-call]
        return None

    def begin(self, used: Tensor | None = None) -> None:
        """Drop what was captured so far if it belongs to an abandoned step.

        Args:
            used: what the layer multiplies by, if that is another tensor than the parameter.
        """
        if not self.has_gradient(used):
            self.coming.clear()

    def has_gradient(self, used: Tensor | None = None) -> bool:
        """Return whether a gradient is there that is not zero; arguments as in `begin`."""
        return any(bool(whole(grad).any()) for grad in self._grads(used))

    def _grads(self, used: Tensor | None = None) -> list[Tensor]:
        grads = (None if p is None else p.grad for p in {self.parameter, used})
        return [grad for grad in grads if grad is not None]

    def __reduce__(self) -> Any:
        return Capture, (None, self.shape, _never)

    def settle(self) -> None:
        """Take what was captured since the last call for the gradients of this step."""
        self.pairs, self.coming = self.coming, []

    def clear(self) -> None:
        """Drop everything."""
        self.pairs, self.coming = [], []

    def scores(self, average: Callable[[Tensor], Tensor]) -> RowScores | None:
        """Return the magnitudes of the dense gradient, by slabs of rows.

        Args:
            average: replaces a slab by its mean over all processes.

        Returns:
            A function of a range of rows; None if no process captured a gradient.
        """
        if not average(torch.tensor(float(len(self.pairs)))).item():
            return None
        like = torch.float32 if self.parameter is None else self.parameter.dtype
        dtype = torch.promote_types(like, torch.float32)
        pairs = [(x.to(dtype), g.to(dtype)) for x, g in self.pairs]

        def slab(begin: int, end: int) -> Tensor:
            total = torch.zeros(end - begin, self.shape[1], dtype=dtype)
            for x, g in pairs:
                # Not addmm_: a sum of products is the same where the pairs are on two processes.
                total += self.product(x, g, begin, end)
            return average(total).abs_()

        return slab


def _never() -> bool:
    return False
