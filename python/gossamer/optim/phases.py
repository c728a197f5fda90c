"""PruneRetrain: phases of training several copies, averaging them, and pruning the average.

Sparse Model Soups and SWAMP differ in where a phase begins: at the pruned average, or at an early
point of the training. The loops that train the copies are the caller's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.arguments import Count, check
from gossamer.errors import ArgumentError, CheckpointError, RecipeError
from gossamer.masks import Distribution
from gossamer.nn import densify, sparsify
from gossamer.nn.globs import Globs
from gossamer.optim.soups import check_alike, soup
from gossamer.patterns import Nonzeros, Pattern, parse_pattern

__all__ = ["PruneRetrain"]


class PruneRetrain:
    """Train copies of one model, average them, prune the average, and begin again.

    The first phase is dense; before each of the `rounds` others the density falls by the same
    factor, to that of the pattern. Each phase is `copies`, the training of each by the caller (with
    another seed, order of batches or weight decay, and always a new optimizer: moments are not
    averaged), and `close`. All copies of a phase keep their one mask.

    - Sparse Model Soups: give a trained model and begin with `close([model])`, or train one copy in
      the first phase; then several in each.
    - SWAMP: `rewind=True` begins every phase at the weights of the model that is given, so give one
      that has been trained for a few steps. Average the last quarter of each particle's steps
      (`AveragedModel`, with a constant rate), and give those averages to `close`.

    Layers share the sparsity by `distribution`; the papers rank the weights of all layers together.

    Args:
        model: a model without masks; a copy is kept.
        pattern: of the last phase. With N:M, each phase keeps the least n that is enough.
        rounds: number of prunings.
        rewind: begin each phase at the weights that were given, instead of the average.
        distribution: how layers share the sparsity, "uniform" or "erk".
        include: globs of the modules to prune, as in `gossamer.sparsify`.
        exclude: globs of the modules that stay dense.

    Attributes:
        phase: number of prunings done, from 0; `rounds` + 1 behind the last phase.

    Raises:
        PatternError: an unknown pattern, or one that has no sparsity of its own; or, by `close`, a
            layer that does not fit it.

    Reference:
        Zimmer, Spiegel and Pokutta 2024, "Sparse Model Soups: A Recipe for Improved Pruning via
        Model Averaging"; Choi et al. 2024, "Sparse Weight Averaging with Multiple Particles for
        Iterative Magnitude Pruning".

    Example:
        >>> phases = PruneRetrain(nn.Linear(8, 8), "1:4", rounds=2)
        >>> while not phases.is_over:
        ...     trained = phases.copies(3)  # and train each
        ...     model = phases.close(trained)
        >>> model.weight.nnz
        16
    """

    def __init__(
        self,
        model: nn.Module,
        pattern: str | Pattern = "90%",
        rounds: Count = 3,
        rewind: bool = False,
        distribution: Distribution = "uniform",
        include: Globs = ("*",),
        exclude: Globs = (),
    ) -> None:
        check(PruneRetrain.__init__, locals())
        if rounds < 1:
            raise ArgumentError(f"PruneRetrain got rounds={rounds}; it must be at least 1")
        self.pattern = parse_pattern(pattern)
        if isinstance(self.pattern, Nonzeros):
            self.pattern.at_sparsity(0.0)  # raises
        self.rounds, self.rewind = rounds, rewind
        self.phase = 0
        self._how: dict[str, Any] = {
            "distribution": distribution, "include": include, "exclude": exclude,
        }  # fmt: skip
        self._given = copy.deepcopy(model)
        self._start: nn.Module = self._given

    @property
    def is_over(self) -> bool:
        """Whether the last phase is closed."""
        return self.phase > self.rounds

    def pattern_of(self, phase: Count) -> Pattern:
        """Return the pattern of a phase, from 1.

        Example:
            >>> phases = PruneRetrain(nn.Linear(8, 8), "1:4", rounds=2)
            >>> [str(phases.pattern_of(phase)) for phase in (1, 2)]
            ['2:4', '1:4']
        """
        check(PruneRetrain.pattern_of, locals())
        if phase >= self.rounds:
            return self.pattern
        return self.pattern.at_sparsity(1.0 - self.pattern.density ** (phase / self.rounds))

    def copies(self, count: Count = 1) -> list[nn.Module]:
        """Return copies of the model at the beginning of this phase, to be trained.

        Raises:
            RecipeError: the last phase is closed.
        """
        check(PruneRetrain.copies, locals())
        self._check_running("copies")
        return [copy.deepcopy(self._start) for _ in range(count)]

    def close(
        self,
        models: Sequence[nn.Module],
        recalibrate: Callable[[nn.Module], object] | None = None,
    ) -> nn.Module:
        """Average the trained copies and begin the next phase with the average, pruned.

        Args:
            models: what this phase has trained; they do not change. A `greedy_soup` is one model.
            recalibrate: estimates the statistics of batch normalisation of the average anew, such
                as `lambda model: update_bn(loader, model)`; needed if there are any.

        Returns:
            The average: as sparse as each of the models, and the result of the phase. It is the
            caller's.

        Raises:
            StructureError: a model has another mask than this phase; nothing changes.
            ArgumentError: no models, models of another architecture, or `recalibrate` is missing;
                nothing changes.
            RecipeError: the last phase is closed.
        """
        self._check_running("close")
        models = list(models)
        for model in models:
            check_alike(self._start, model)
        mean = soup(models)
        if recalibrate is not None:
            recalibrate(mean)
        elif len(models) > 1 and (name := _normalised(mean)) is not None:
            raise ArgumentError(
                f"PruneRetrain.close got no recalibrate=, and {name!r} has the statistics of one "
                "model only; give e.g. lambda model: update_bn(loader, model)"
            )
        if self.phase < self.rounds:
            self._start = self._pruned(mean)
        self.phase += 1
        return mean

    def state_dict(self) -> dict[str, Any]:
        """Return the state between two phases: `torch.save` takes it, and `load_state_dict`."""
        state = {"phase": self.phase, "start": _state_of(self._start)}
        if self.rewind:
            state["given"] = _state_of(self._given)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue behind the phase at which a state was taken, bit for bit.

        Raises:
            CheckpointError: not the state of phases with these arguments; nothing changes.
        """
        try:
            phase, given = int(state["phase"]), copy.deepcopy(self._given)
            if self.rewind:
                given.load_state_dict(state["given"])
            start = given if phase == 0 else copy.deepcopy(given)
            if phase > 0:
                start = sparsify(start, self.pattern_of(phase), **self._how)
            start.load_state_dict(state["start"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"PruneRetrain.load_state_dict got another state ({str(error)[:200]}); load what "
                "state_dict() returned, with the same model and arguments"
            ) from error
        self.phase, self._given, self._start = phase, given, start

    def _pruned(self, mean: nn.Module) -> nn.Module:
        """Return the start of the next phase."""
        pattern = self.pattern_of(self.phase + 1)
        sizes: dict[str, Tensor] = {}

        def size(name: str, weight: Tensor) -> Tensor:
            sizes[name] = weight.abs()
            return sizes[name]

        pruned = sparsify(densify(copy.deepcopy(mean)), pattern, score=size, **self._how)
        if not self.rewind:
            return pruned
        return sparsify(copy.deepcopy(self._given), pattern, score=sizes, **self._how)

    def _check_running(self, what: str) -> None:
        if self.is_over:
            raise RecipeError(
                f"PruneRetrain.{what}: all {self.rounds + 1} phases are closed; what the last "
                "close returned is the result"
            )


def _normalised(model: nn.Module) -> str | None:
    """Return the name of a layer with running statistics."""
    for name, module in model.named_modules():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            return str(name)
    return None


def _state_of(model: nn.Module) -> dict[str, Any]:
    return {
        name: value.detach().clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)
        for name, value in model.state_dict().items()
    }
