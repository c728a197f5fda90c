"""IMP: iterative magnitude pruning with rewinding.

Training is cut into rounds + 1 parts of equal length. After part r each layer is pruned by
magnitude to density d^(r / rounds), d the pattern's; then weights and optimizer are set back to an
early step of the first part. The first part is dense, so training is not cheaper than dense.
Frankle et al. 2020.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gossamer.arguments import check
from gossamer.nn import MaskedLinear
from gossamer.patterns import Pattern
from gossamer.recipes.base.checks import check_count, check_share, refuse_unprunable
from gossamer.recipes.base.fixed import fixed_mask, prune_to, with_sparsity, zero_outside
from gossamer.recipes.base.recipe import Recipe


@dataclass(eq=False)
class IMP(Recipe):
    """Train, prune by magnitude, rewind, and repeat.

    The steps are cut into rounds + 1 parts of equal length; the last part has the remainder. The
    first part is dense, and the density falls by the same factor from part to part. Every
    Parameter of the optimizer is rewound, with its optimizer state (Adam's step counts included).
    Let the learning rate be rewound too, by a scheduler that follows `position`. Buffers, such as
    those of batch normalisation, are not rewound. The state dict holds a copy of the parameters and
    of their state.

    Args:
        pattern: the final pattern, or its text. With N:M, each part keeps the least n that is
            enough for its density.
        distribution: how layers share the final sparsity: "uniform" or "erk".
        rounds: number of prunings.
        rewind_share: step to go back to, as a share of one part; 0 is the start.

    Raises:
        PatternError: an unknown pattern.
        RecipeError: a number out of range.

    Reference:
        Frankle and Carbin 2019, "The Lottery Ticket Hypothesis"; Frankle et al. 2020, "Linear Mode
        Connectivity and the Lottery Ticket Hypothesis" (rewinding to a step).

    Example:
        >>> IMP("75%", rounds=2).density(1, 0.25)
        0.5
    """

    pattern: str | Pattern = "90%"
    rounds: int = 4
    rewind_share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unprunable(self.pattern, "IMP")
        check_count(self.rounds, "IMP got rounds")
        check_share(self.rewind_share, "IMP got rewind_share")

    def minimum_steps(self) -> int:
        """One step per part."""
        return self.rounds + 1

    def position(self, step: int, total_steps: int) -> tuple[int, int]:
        """Return the step of the part that a step is in, and the steps of a part.

        A part that begins with weights of an earlier step begins with its learning rate too, and
        ends with the last one.

        Example:
            >>> recipe = IMP("75%", rounds=1, rewind_share=0.5)
            >>> [recipe.position(step, 8)[0] for step in range(8)]
            [0, 1, 2, 3, 2, 2, 3, 3]
        """
        check(IMP.position, locals())
        part, begin = self._cut(total_steps)
        number = min(step // part, self.rounds) if part else 0
        if number == 0:
            return step, part or total_steps
        length = part if number < self.rounds else total_steps - self.rounds * part
        return begin + (step - number * part) * (part - begin) // length, part

    @property
    def part(self) -> int:
        """Steps between two prunings."""
        return self._cut(self.total_steps)[0]

    @property
    def rewind_step(self) -> int:
        """The step to whose beginning weights and optimizer are set back."""
        return self._cut(self.total_steps)[1]

    def _cut(self, total_steps: int) -> tuple[int, int]:
        """Return the steps of a part, and the one that is gone back to."""
        part = total_steps // (self.rounds + 1)
        return part, min(int(self.rewind_share * part), part - 1)

    def density(self, finished: int, final: float) -> float:
        """Return a layer's density after `finished` prunings, if its final density is `final`."""
        check(IMP.density, locals())
        return float(final ** (finished / self.rounds))

    def takes_convolutions(self) -> bool:
        """Yes: their weight is dense too."""
        return True

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer with a fixed mask, dense until it is pruned."""
        return fixed_mask(linear, pattern, pattern)

    def start(self) -> None:
        """Keep everything; remember the start if training is rewound to it."""
        self._prune(0)
        if self.rewind_step == 0:
            self._remember()

    def after_step(self, t: int) -> None:
        """Remember the weights, or prune and rewind, when the next step begins."""
        finished, rest = divmod(t + 1, self.part)
        if rest == 0 and 1 <= finished <= self.rounds:
            self._prune(finished)
            self._rewind()
        if t + 1 == self.rewind_step:
            self._remember()

    def _prune(self, finished: int) -> None:
        for _, _, layer in self.of_type(MaskedLinear):
            last = finished == self.rounds
            sparsity = 1.0 if last else 1.0 - self.density(finished, layer.target.density)
            prune_to(layer, with_sparsity(layer.target, sparsity), self.optimizer)

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        for number, group in enumerate(groups):
            for place, parameter in enumerate(group["params"]):
                yield f"{number}.{place}", parameter

    def _optimizer_state(self, parameter: nn.Parameter) -> dict[str, Any]:
        return {} if self.optimizer is None else self.optimizer.state.get(parameter, {})

    def _remember(self) -> None:
        for where, parameter in self._trained():
            self.state[f"{where}/value"] = parameter.detach().clone()
            for name, value in self._optimizer_state(parameter).items():
                if isinstance(value, Tensor | int | float):
                    copy = value.clone() if isinstance(value, Tensor) else value
                    self.state[f"{where}/state/{name}"] = copy

    def _rewind(self) -> None:
        for where, parameter in self._trained():
            parameter.copy_(self.state[f"{where}/value"])
            state = self._optimizer_state(parameter)
            if not any(name.startswith(f"{where}/state/") for name in self.state):
                # At the start the optimizer had no state.
                state.clear()
            for name, value in state.items():
                saved = self.state.get(f"{where}/state/{name}")
                if isinstance(value, Tensor) and isinstance(saved, Tensor):
                    value.copy_(saved)
                elif saved is not None:
                    state[name] = saved
        for _, _, layer in self.of_type(MaskedLinear):
            # The remembered weights are denser than the mask.
            zero_outside(layer.weight, layer.mask(), self.optimizer)
