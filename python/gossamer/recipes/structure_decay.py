"""StructureDecay: a dense weight under N:M masks that tighten window by window.

    stepwise   (M-1):M, M/2:M, M/4:M, ..., N:M       density falls, the group stays
    geometric  N 2^k : M 2^k, k = windows-1 ... 0    density stays, the group shrinks

Within a window the mask is picked from the magnitudes in every forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from gossamer.arguments import check
from gossamer.errors import PatternError, RecipeError
from gossamer.nn import MaskedLinear
from gossamer.patterns import MAX_M, NM, Pattern
from gossamer.recipes.base.checks import check_choice, check_phases
from gossamer.recipes.base.recipe import Recipe
from gossamer.recipes.base.updates import Phases


@dataclass(eq=False)
class StructureDecay(Recipe):
    """Windows of equal length, each with its own N:M pattern; the last pattern is the target.

    Args:
        pattern: the target, N:M. For "stepwise" M / N is a power of two above 1.
        distribution: "uniform", because N:M patterns have a fixed density.
        method: "stepwise" or "geometric".
        windows: number of windows of "geometric"; its first group has M 2^(windows-1) columns, at
            most 64. "stepwise" has log2(M/N) + 1 windows.
        dense_share: share of the steps, at the beginning, with a dense weight.
        finetune_share: share of the steps, at the end, added to the last window.

    Raises:
        PatternError: an unknown pattern, or one that is not N:M.
        RecipeError: an N:M pattern without such windows, or shares that leave no steps between
            them.

    Reference:
        Bambhaniya et al. 2024, "Progressive gradient flow for robust N:M sparsity training in
        transformers" (SdGf).

    Example:
        >>> [str(p) for p in StructureDecay("1:8").patterns]
        ['7:8', '4:8', '2:8', '1:8']
        >>> [str(p) for p in StructureDecay("1:8", method="geometric").patterns]
        ['8:64', '4:32', '2:16', '1:8']
    """

    method: Literal["stepwise", "geometric"] = "stepwise"
    windows: int = 4
    dense_share: float = 0.0
    finetune_share: float = 0.0

    id = "structure-decay"
    renamed: ClassVar[dict[str, str]] = {"kind": "method"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.method, "StructureDecay got method", ("stepwise", "geometric"))
        check_phases("StructureDecay", self.dense_share, self.finetune_share)
        if not isinstance(self.pattern, NM):
            raise PatternError(
                f"StructureDecay got pattern {self.pattern}; its windows are N:M: choose an N:M "
                "target such as 1:8"
            )
        self.patterns = self._stepwise() if self.method == "stepwise" else self._geometric()

    def takes_convolutions(self) -> bool:
        """Yes: their weight is dense too."""
        return True

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A `MaskedLinear` whose sizes fit the patterns of all windows."""
        layer = MaskedLinear.from_dense(linear, pattern)
        sizes = layer.out_features, layer.in_features
        for window in self.patterns:
            try:
                layer.product.check_pattern(window, *sizes, "prepare")
            except PatternError as error:
                raise PatternError(
                    f"the windows of {self.method} decay to {pattern} are "
                    f"{', '.join(map(str, self.patterns))}; {error}"
                    + ("; or take fewer windows=" if self.method == "geometric" else "")
                ) from None
        return layer

    def minimum_steps(self) -> int:
        """One step per window."""
        total = len(self.patterns)
        while Phases.of_shares(self.dense_share, self.finetune_share, total).transition < len(
            self.patterns
        ):
            total += 1
        return total

    def window_at(self, t: int, total_steps: int) -> int | None:
        """Return the number of the window of step t, from 0; None in the dense phase."""
        check(StructureDecay.window_at, locals())
        phases = Phases.of_shares(self.dense_share, self.finetune_share, total_steps)
        if t < phases.dense:
            return None
        last = len(self.patterns) - 1
        return min((t - phases.dense) * len(self.patterns) // max(phases.transition, 1), last)

    def start(self) -> None:
        """Set the pattern of the first step."""
        self._tighten(0)

    def after_step(self, t: int) -> None:
        """Set the pattern of the next step."""
        self._tighten(t + 1)

    def _tighten(self, t: int) -> None:
        window = self.window_at(t, self.total_steps)
        for _, _, layer in self.of_type(MaskedLinear):
            if window is None:
                layer.set_dense()
            elif layer.pattern != self.patterns[window]:
                layer.set_pattern(self.patterns[window])

    def _stepwise(self) -> list[NM]:
        n, m, vector = self.pattern.n, self.pattern.m, self.pattern.vector  # type: ignore[union-attr]
        ratio = m // n
        if m % n or ratio < 2 or ratio & (ratio - 1):
            raise RecipeError(
                f"StructureDecay got the pattern {self.pattern}; the stepwise windows halve N "
                "from M / 2 down, so M / N must be a power of two above 1: choose for example "
                "2:4, 1:8 or 2:16, or method='geometric'"
            )
        kept = [m >> k for k in range(1, ratio.bit_length()) if m >> k > n]
        return [NM(k, m, vector) for k in (m - 1, *kept)] + [NM(n, m, vector)]

    def _geometric(self) -> list[NM]:
        n, m, vector = self.pattern.n, self.pattern.m, self.pattern.vector  # type: ignore[union-attr]
        most = (MAX_M // m).bit_length()
        if not 1 <= self.windows <= most:
            raise RecipeError(
                f"StructureDecay got windows={self.windows} with the pattern {self.pattern}; a "
                f"group has at most {MAX_M} columns, and the first window's has M 2^(windows-1): "
                f"choose windows from 1 to {most}, or method='stepwise'"
            )
        return [NM(n << k, m << k, vector) for k in range(self.windows - 1, -1, -1)]


__all__ = ["StructureDecay"]
