"""The phases of progressive gradient flow: dense, then a transition, then the pattern alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gossamer.errors import RecipeError


@dataclass(frozen=True)
class Phases:
    """Where a training of `total` steps is dense, in transition and at its pattern.

    Args:
        dense: steps from the first in which nothing is masked.
        finetune: the first step of the last phase, in which only the pattern's entries count.
        total: steps.
    """

    dense: int
    finetune: int
    total: int

    @classmethod
    def of_shares(cls, dense_share: float, finetune_share: float, total: int) -> Phases:
        """The phases that two shares of the steps mark off, rounded to shorter ones.

        Example:
            >>> Phases.of_shares(0.1, 0.25, 100)
            Phases(dense=10, finetune=75, total=100)
        """
        return cls(int(dense_share * total), total - int(finetune_share * total), total)

    @property
    def transition(self) -> int:
        """Steps of the transition."""
        return self.finetune - self.dense


def check_choice(who: str, kind: str, choices: Sequence[str]) -> None:
    """RecipeError unless `kind` is one of the choices."""
    if kind not in choices:
        raise RecipeError(f"{who} got kind={kind!r:.80}; choose {' or '.join(choices)}")


def check_shares(who: str, dense_share: float, finetune_share: float) -> None:
    """RecipeError unless both shares are in [0, 1) and leave room between them."""
    for name, share in (("dense_share", dense_share), ("finetune_share", finetune_share)):
        if not isinstance(share, int | float) or not 0.0 <= share < 1.0:
            raise RecipeError(
                f"{who} got {name}={share!r:.80}; a share of the steps in [0, 1) is needed"
            )
    if dense_share + finetune_share >= 1.0:
        raise RecipeError(
            f"{who} got dense_share={dense_share} and finetune_share={finetune_share}; together "
            "they must stay below 1: nothing is left for the transition between them"
        )


__all__ = ["Phases", "check_choice", "check_shares"]
