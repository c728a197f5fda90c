"""When a recipe updates: every so many steps, and the phases of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Phases", "steps_between", "steps_needed"]


def steps_between(every: int | None, steps: int, updates: int = 10) -> int:
    """Steps between two updates.

    Args:
        every: the given interval; None takes 100, or fewer so that `updates` updates fit.
        steps: steps of the phase that has updates.
        updates: updates that must fit into them.

    Example:
        >>> steps_between(7, 1000), steps_between(None, 5000), steps_between(None, 50)
        (7, 100, 5)
    """
    return every or max(1, min(100, steps // updates))


def steps_needed(every: int | None, share: float) -> int:
    """Smallest number of steps of a training that contains an update.

    Args:
        every: steps between two updates, or None.
        share: share of the training that has updates.
    """
    return 1 if every is None or share <= 0.0 else math.ceil((every + 1) / share)


@dataclass(frozen=True)
class Phases:
    """The phases of progressive gradient flow: dense, a transition, and the pattern alone.

    Args:
        dense: number of steps, from the first, in which nothing is masked.
        finetune: first step of the last phase, in which only the pattern's entries count.
        total: number of steps.
    """

    dense: int
    finetune: int
    total: int

    @classmethod
    def of_shares(cls, dense_share: float, finetune_share: float, total: int) -> Phases:
        """Build the phases from two shares of the steps; both phases are rounded down.

        Example:
            >>> Phases.of_shares(0.1, 0.25, 100)
            Phases(dense=10, finetune=75, total=100)
        """
        return cls(int(dense_share * total), total - int(finetune_share * total), total)

    @property
    def transition(self) -> int:
        """Steps of the transition."""
        return self.finetune - self.dense
