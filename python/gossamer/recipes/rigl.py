"""RigL: SET that grows where the gradient is largest.

The candidates with the largest |dL/dW| grow. The dense gradient dY^T X of the whole step, averaged
over processes, is computed at updates only, a slab of rows at a time; steps with an update keep
each layer's input and output gradient until the optimizer's step. Evci et al. 2020.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.backend import Structure
from gossamer.backend.growth import grow_largest
from gossamer.errors import RecipeError
from gossamer.nn import ActivationSparseFFN
from gossamer.nn.layers.sparse import SparseLayer, matrix_gradient
from gossamer.recipes.base.capture import Capture
from gossamer.recipes.base.slots import RowScores, Slots
from gossamer.recipes.set import SET

# Entries whose scores are in memory at a time: 4 MB in float32.
SLAB = 1 << 20


@dataclass(eq=False)
class RigL(SET):
    """Drop the smallest kept entries at intervals, and grow those with the largest gradient.

    Like `SET`, except for what grows. The published code skips the optimizer's step when it moves
    the mask; here the step is taken first, so that every batch has one. The gradient is that at
    the weights before the step.

    Args:
        pattern: pattern of the kept entries, or its text.
        distribution: "uniform" or "erk"; None is "erk" unless the pattern is N:M.
        seed: seed of the first masks.
        fraction: share of the kept entries that the first update drops; 0 moves nothing.
        every: steps between two updates; None is 100, or fewer so that 10 updates fit.
        end_share: point of the training, as a share of the steps, after which masks are fixed.

    Raises:
        PatternError: an unknown pattern, or "erk" for an N:M pattern.
        RecipeError: a number out of range.

    Reference:
        Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners", algorithm 1.

    Example:
        >>> import torch
        >>> recipe = RigL("75%", every=1)
        >>> model = recipe.prepare(torch.nn.Sequential(torch.nn.Linear(8, 4)))
        >>> optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.1)
        >>> recipe.attach(model, optimizer, total_steps=10)
        >>> for _ in range(2):
        ...     model(torch.randn(3, 8)).sum().backward()
        ...     optimizer.step()
        >>> model[0].weight.nnz
        8
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.captures: dict[str, Capture] = {}
        self._hooks: list[Any] = []
        self._seen = False  # whether a capture had a gradient at this update

    def find(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Yield the layers that `prepare` has made.

        Raises:
            RecipeError: there are none, or a network with sparse activations holds one, which is
                not called and has no output gradient.
        """
        networks = ActivationSparseFFN.find_in(model).values()
        inside = {id(part) for network in networks for part in network.sparse_parts.values()}
        for name, layer in super().find(model):
            if id(layer) in inside:
                raise RecipeError(
                    f"{type(self).__name__} grows by the gradients of layers that are called, and "
                    f"{name} is a part of an ActivationSparseFFN; use SET or Static"
                )
            yield name, layer

    def start(self) -> None:
        """Capture the layers' inputs and output gradients."""
        for name, layer, parameter, shape in self.watched():
            product = getattr(layer, "dense_gradient", matrix_gradient)
            capture = Capture(parameter, shape, lambda: bool(self.share(self.step)), product)
            self.captures[name] = capture
            self._hooks.append(layer.register_forward_hook(capture, with_kwargs=True))

    def watched(self) -> Iterator[tuple[str, nn.Module, nn.Parameter, tuple[int, int]]]:
        """Yield the (name, layer, parameter, shape) of each layer whose gradient is needed."""
        for _, name, layer in self.of_type(SparseLayer):
            rows, cols = layer.weight.shape
            yield name, layer, layer.weight.values, (rows, cols)

    def before_step(self, t: int) -> None:
        """Keep what belongs to the gradients that are there now."""
        for capture in self.captures.values():
            capture.settle()

    def after_step(self, t: int) -> None:
        """Move the masks, and drop what was captured in the step."""
        self._seen = False
        super().after_step(t)
        if self.captures and self.share(t) and not self._seen:
            self._check_unseen()
        for capture in self.captures.values():
            capture.clear()

    def grown(
        self, t: int, index: int, name: str, slots: Slots, old: Structure, stays: Tensor
    ) -> Structure | None:
        """Return the structure with the grown slots; None if the layer had no gradient."""
        if (scores := self.scores(t, index, name, slots)) is None:
            return None
        slabs = (slots.scores(scores(begin, end), old) for begin, end in slots.slabs(SLAB))
        return grow_largest(old, stays, slabs)

    def growth(self, t: int, index: int, name: str, slots: Slots) -> Tensor | None:
        """Return the magnitude of each slot's gradient; None if the layer had none."""
        if (scores := self.scores(t, index, name, slots)) is None:
            return None
        return torch.cat([slots.sums(scores(begin, end)) for begin, end in slots.slabs(SLAB)])

    def scores(self, t: int, index: int, name: str, slots: Slots) -> RowScores | None:
        """Return the magnitudes of the dense gradient; None if the layer had none in this step."""
        found = self.captures[name].scores(self.average)
        self._seen = self._seen or found is not None
        return found

    def _check_unseen(self) -> None:
        """Raise RecipeError if gradients are there, of which no capture has seen one."""
        if any(capture.has_gradient() for capture in self.captures.values()):
            raise RecipeError(
                f"{type(self).__name__} has seen none of the gradients that are there; code that "
                "was compiled before recipe.attach does not tell it: attach the recipe before the "
                "first call of the compiled model, or call torch.compiler.reset() after attaching"
            )

    def _forget(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.captures = [], {}
        super()._forget()
