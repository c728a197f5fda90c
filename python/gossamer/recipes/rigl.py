"""RigL: SET that grows where the gradient is largest.

Grown are the candidates of largest |dL/dW|, the dense gradient dY^T X of the whole step, averaged
over processes. Evci et al. 2020. It is computed at the updates only, a slab of rows at a time;
their steps keep the input and the output's gradient of each layer until the optimizer steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from gossamer.nn import SparseLinear
from gossamer.recipes.capture import Capture
from gossamer.recipes.set import SET
from gossamer.recipes.slots import RowScores, Slots


@dataclass(eq=False)
class RigL(SET):
    """Drop the smallest kept entries now and then, and grow those of the largest gradient.

    As `SET` in everything but what grows. The published code leaves the gradient step out when it
    moves the mask; here it is taken first, so that there is one step a batch. The gradient is that
    of the weights before it.

    Args:
        pattern: of the kept entries, or its text.
        distribution: as in `SET`.
        seed: of the first masks.
        fraction: share of the kept entries that is dropped at first; 0 moves nothing.
        every: steps from one update to the next, as in `SET`.
        until: share of the training after which the masks rest.

    Raises:
        PatternError: as `SET`.
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

    def start(self) -> None:
        """Watch the layers' inputs and output gradients."""
        for name, layer, parameter, shape in self.watched():
            capture = Capture(parameter, shape, lambda: bool(self.share(self.step)))
            self.captures[name] = capture
            self._hooks.append(layer.register_forward_hook(capture))

    def watched(self) -> Iterator[tuple[str, nn.Module, nn.Parameter, tuple[int, int]]]:
        """The (name, layer, parameter, shape) of each layer whose gradient is needed."""
        for _, name, layer in self.of_type(SparseLinear):
            rows, cols = layer.weight.shape
            yield name, layer, layer.weight.values, (rows, cols)

    def after_step(self, t: int) -> None:
        """Move the masks, and let go of what the layers saw in the step."""
        super().after_step(t)
        for capture in self.captures.values():
            capture.pairs.clear()

    def scores(self, t: int, index: int, name: str, slots: Slots) -> RowScores | None:
        """The magnitudes of the dense gradient; None when the layer took no part in the step."""
        return self.captures[name].scores(self.average)

    def _forget(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.captures = [], {}
        super()._forget()
