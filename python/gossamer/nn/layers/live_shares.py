"""What an `ActivationSparseFFN` remembers of its calls: which share of its pairs was alive."""

from __future__ import annotations

import torch
from torch import Tensor

# How much of the old mean of a share stays after a step, and after how many steps without a live
# token a neuron counts as dead.
_KEPT = 0.8
_DEAD_AFTER = 50


class LiveShares:
    """Running shares of the live, the screened and the dead of one layer."""

    def __init__(self) -> None:
        self.live: float | None = None
        """Of all pairs; None before the first call."""
        self.screened: float | None = None
        """The pairs that the int8 screen leaves; None before it ran."""
        self.silent: Tensor | None = None
        """[hidden]: training steps since a neuron was last alive."""
        self.calls = 0
        self._taken = (0, 0)  # live and all pairs of the training passes since `take`

    def count(self, alive: Tensor, pairs: int, training: bool, learns: bool) -> None:
        """Follow the shares of a call.

        Args:
            alive: [hidden] number of tokens for which each neuron is alive.
            pairs: all (token, neuron) pairs of the call.
            training: whether the layer is in training mode.
            learns: whether a backward pass follows.
        """
        live = int(alive.sum())
        self.count_live(live, pairs)
        if training:
            silent = torch.zeros_like(alive) if self.silent is None else self.silent
            self.silent = (silent + 1).masked_fill_(alive > 0, 0)
            if learns:
                self._taken = (self._taken[0] + live, self._taken[1] + pairs)

    def count_live(self, live: int, pairs: int) -> None:
        """Follow the share of live pairs alone."""
        self.live = _mean(self.live, live / pairs)

    def count_screened(self, screened: int, pairs: int) -> None:
        """Follow the share of the pairs that the int8 screen leaves."""
        self.screened = _mean(self.screened, screened / pairs)

    def dead(self) -> Tensor:
        """Return the dead neurons, int64."""
        if self.silent is None:
            return torch.empty(0, dtype=torch.int64)
        return (self.silent >= _DEAD_AFTER).nonzero().flatten()

    def take(self) -> tuple[int, int]:
        """Return the live pairs and all pairs of the training passes since the last call."""
        counts, self._taken = self._taken, (0, 0)
        return counts


def _mean(old: float | None, new: float) -> float:
    return new if old is None else _KEPT * old + (1 - _KEPT) * new


__all__ = ["LiveShares"]
