"""IMP: iterative magnitude pruning with rewinding.

Training is cut into rounds of equal length. After round r the smallest entries of a layer are
pruned until its density is d^(r / rounds), d the pattern's; then weights and optimizer go back to
where they were early in the first round. Frankle et al. 2020: tickets are found by training dense
first, so this costs rounds + 1 trainings and saves none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gossamer.masks import magnitude_mask
from gossamer.nn import MaskedLinear
from gossamer.patterns import Pattern
from gossamer.recipes.held import check_thins, held_layer, hold, target_of, thinner
from gossamer.recipes.recipe import Recipe
from gossamer.recipes.static import check_count, check_share


@dataclass(eq=False)
class IMP(Recipe):
    """Train, prune by magnitude, rewind, and again.

    The total steps are cut into rounds + 1 parts of equal length, the last with the remainder:
    one trains dense, then one each at a density that falls by the same factor from part to part.
    Every Parameter of the optimizer is rewound, and the optimizer's state of it, step counts of
    Adam included. The learning rate is the scheduler's of the user, who gives it the parts'
    length (`part`) as a period to rewind it too; buffers, such as those of batch normalisation,
    are not rewound. The state dict holds a copy of the parameters and of their state.

    Args:
        pattern: of the end, or its text. With N:M, a part keeps the least n that is enough.
        rounds: how often there is pruning.
        rewind_share: the step to go back to, as a share of one part; 0 is the start.
        distribution: how layers share the sparsity in the end: "uniform" or "erk".

    Raises:
        PatternError: no such pattern.
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
    distribution: str = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_thins(self.pattern, "IMP")
        self.rounds = check_count(self.rounds, "IMP got rounds")
        self.rewind_share = check_share(self.rewind_share, "IMP got rewind_share")

    def minimum_steps(self) -> int:
        """One step for each part."""
        return self.rounds + 1

    @property
    def part(self) -> int:
        """Steps from one pruning to the next."""
        return self.total_steps // (self.rounds + 1)

    @property
    def rewind_step(self) -> int:
        """The step whose beginning weights and optimizer go back to."""
        return min(int(self.rewind_share * self.part), self.part - 1)

    def density(self, finished: int, final: float) -> float:
        """The density of a layer that ends with a given one, after so many prunings."""
        return float(final ** (finished / self.rounds))

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A dense weight, all of it kept at first."""
        return held_layer(linear, thinner(pattern, 0.0), pattern)

    def start(self) -> None:
        """Keep everything; remember the start when that is what is gone back to."""
        self._prune(0)
        if self.rewind_step == 0:
            self._remember()

    def after_step(self, t: int) -> None:
        """Remember the weights, or prune and rewind, before the next step."""
        finished, rest = divmod(t + 1, self.part)
        if rest == 0 and 1 <= finished <= self.rounds:
            self._prune(finished)
            self._rewind()
        if t + 1 == self.rewind_step:
            self._remember()

    def _prune(self, finished: int) -> None:
        for _, _, layer in self.of_type(MaskedLinear):
            target = target_of(layer)
            sparsity = 1.0 - self.density(finished, target.density)
            pattern = target if finished == self.rounds else thinner(target, sparsity)
            hold(layer, magnitude_mask(layer.weight, pattern), pattern, self.optimizer)

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
                # At the start an optimizer had no state: let it begin anew.
                state.clear()
            for name, value in state.items():
                saved = self.state.get(f"{where}/state/{name}")
                if isinstance(value, Tensor) and isinstance(saved, Tensor):
                    value.copy_(saved)
                elif saved is not None:
                    state[name] = saved
        for _, _, layer in self.of_type(MaskedLinear):
            # What was remembered is denser than the mask.
            hold(layer, layer.mask(), layer.pattern, self.optimizer)
