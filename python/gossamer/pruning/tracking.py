"""How many weights are small, followed over a training."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.arguments import Count, check, is_number
from gossamer.errors import ArgumentError, CheckpointError
from gossamer.nn.layers.base import MaskedLayer
from gossamer.nn.layers.replacing import is_convolution
from gossamer.nn.left_dense import is_dense_linear
from gossamer.optim.steps import follow, unwrapped
from gossamer.tables import text_table

__all__ = ["SmallWeights"]


class SmallWeights:
    """Measures the share of |w| below thresholds, at the start and every so many steps.

    The weights are those of linear layers and convolutions, dense or with a mask; dropped entries
    count as small. It only reads: training with and without it is the same bit for bit.

    Args:
        model: any module, with a recipe or without.
        thresholds: the values that |w| is compared with, above 0.
        every: steps between two measurements.

    Attributes:
        history: one entry per measurement: `step` (of steps taken), `shares` of all weights by
            threshold, and `layers` with the same per layer.

    Raises:
        ArgumentError: there is no such layer, or a threshold is not above 0.

    Reference:
        Jaiswal et al. 2023, "The Emergence of Essential Sparsity in Large Pre-trained Models",
        section 3.4, which finds that weights become small at once at some point of a training.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> small = SmallWeights(model, [1e-2], every=2)
        >>> small.attach(optimizer)
        >>> for _ in range(4):
        ...     _ = optimizer.step()
        >>> [entry["step"] for entry in small.history]
        [0, 2, 4]
    """

    def __init__(
        self, model: nn.Module, thresholds: Sequence[float] = (1e-3, 1e-2), every: Count = 100
    ) -> None:
        check(SmallWeights.__init__, locals())
        self.thresholds = [float(t) for t in thresholds if is_number(t) and t > 0]
        if not self.thresholds or len(self.thresholds) != len(thresholds):
            raise ArgumentError(
                f"SmallWeights got thresholds={list(thresholds)!r:.80}; give numbers above 0"
            )
        self.every = int(every)
        self._layers = dict(_layers(model))
        if not self._layers:
            raise ArgumentError("SmallWeights found no linear layer and no convolution")
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self._handles: list[Any] = []

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure now, and follow the steps of an optimizer.

        Raises:
            ArgumentError: it follows an optimizer already.
        """
        check(SmallWeights.attach, {})
        if self._handles:
            raise ArgumentError("SmallWeights follows an optimizer already; detach() it first")
        self._handles = follow(unwrapped(optimizer), lambda _: None, self._after)
        if not self.history:
            self.measure()

    def detach(self) -> None:
        """Follow no longer; the history stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        """Measure now, add it to the history and return it."""
        layers, counts, total = {}, torch.zeros(len(self.thresholds), dtype=torch.int64), 0
        for name, layer in self._layers.items():
            size, values = _entries(layer)
            small = [size - values.numel() + int((values.abs() < t).sum()) for t in self.thresholds]
            layers[name] = [count / max(size, 1) for count in small]
            counts += torch.tensor(small)
            total += size
        shares = (counts.double() / max(total, 1)).tolist()
        self.history.append({"step": self.step, "shares": shares, "layers": layers})
        return self.history[-1]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the steps and the history."""
        return {
            "step": self.step, "thresholds": list(self.thresholds),
            "history": copy.deepcopy(self.history),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume: what comes then is what an uninterrupted training would have measured.

        Raises:
            CheckpointError: the state is damaged, or has other thresholds.
        """
        check(SmallWeights.load_state_dict, locals())
        history, step = state.get("history"), state.get("step")
        if not isinstance(history, list) or not isinstance(step, int):
            raise CheckpointError("the state of SmallWeights is damaged; use another copy")
        if state.get("thresholds") != self.thresholds:
            raise CheckpointError(
                f"the state of SmallWeights has thresholds {state.get('thresholds')!r:.80}, this "
                f"one {self.thresholds}; use the same"
            )
        self.step, self.history = step, copy.deepcopy(history)

    def __str__(self) -> str:
        rows = [
            (str(entry["step"]), *(f"{share:.4f}" for share in entry["shares"]))
            for entry in self.history
        ]
        headings = ("step", *(f"|w| < {t:g}" for t in self.thresholds))
        return text_table("share of small weights", headings, rows)

    def _after(self) -> None:
        self.step += 1
        if self.step % self.every == 0:
            self.measure()


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, MaskedLayer) or is_dense_linear(module) or is_convolution(module):
            yield name, module


def _entries(layer: nn.Module) -> tuple[int, Tensor]:
    """Return the size of a layer's weight and its kept entries."""
    if isinstance(layer, MaskedLayer):
        return layer.out_features * layer.in_features, layer.kept_values()
    weight: Any = layer.weight
    return weight.numel(), weight.detach()
