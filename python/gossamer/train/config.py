"""The configuration of a training, and its flat form with the command line's options."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch

from gossamer.arguments import check, shown
from gossamer.errors import (
    ArgumentError,
    DataError,
    DTypeError,
    PatternError,
    RecipeError,
)
from gossamer.nn.lr_scaling import exponent_of
from gossamer.prox import PenaltyError
from gossamer.recipes import ActivationL1
from gossamer.train.penalty import PenaltyOptions
from gossamer.train.spec import DENSE, RunSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Options of the penalty, by their names on the command line.
PENALTY_OPTIONS = {"lam": "lam", "k": "k", "p": "p", "penalty_groups": "groups"}


@dataclass(frozen=True)
class TrainConfig:
    """The models, the data and the hyper-parameters of a training.

    Args:
        runs: the runs to train side by side, without duplicates, as `RunSpec` reads them:
            `"dense"`, the text of a pattern, or a recipe and a pattern as in `"rigl@90%"`; a final
            `"+topk"` or `"+sinkhorn"` makes the MLPs mixtures of experts, `"+activations"` lets
            them compute live activations only.
        exclude: globs of module names; matching modules stay dense.
        steps: optimizer steps per run; with `equal_seconds` and without `seconds`, of the dense
            run, or of the first if there is none.
        equal_seconds: whether each run gets the same time instead of the same steps. The steps of
            each run are planned from a measurement before the first step.
        seconds: time of each run; None takes the time of `steps` steps.
        run_steps: the planned steps, in the order of the runs; None before they are planned.
        batch: windows per step.
        context: tokens per window.
        width: features of the residual stream.
        depth: number of blocks.
        heads: attention heads per block.
        experts: MLPs per block in the runs that have a router.
        gated: whether the MLPs have a gate, as `GPTConfig` says.
        target_share: share of live activations in the runs with `"+activations"`.
        lr: peak learning rate.
        scale_lr: exponent of the density in the learning rate of a weight with a mask, as
            `scale_lr` of `gossamer.parameter_groups`; 0 gives all weights one rate.
        seed: seed of the initial weights and of the order of the data.
        threads: number of torch's threads; None keeps torch's choice.
        dtype: `"float32"`, or `"bfloat16"` for autocast.
        level: `"byte"` or `"char"`.
        data: file or folder of text; None for the source of Python's standard library.
        eval_every: steps between two measurements of the validation loss.
        checkpoint_every: steps between two checkpoints; 0 writes one at the end only.
        penalty: penalty on the weights of the linear layers; `exclude` applies to it as well.
        recipe_options: hyper-parameters of the recipe as `"name=value"`; they need exactly one
            run with a recipe.

    Raises:
        GossamerError: a value is out of range; the subclass names the kind of value.

    Example:
        >>> TrainConfig(runs=("dense", "2:4 : v4")).runs
        ('dense', '2:4:v4')
    """

    runs: tuple[str, ...] = ("2:4:v4",)
    exclude: tuple[str, ...] = ()
    steps: int = 500
    equal_seconds: bool = False
    seconds: float | None = None
    run_steps: tuple[int, ...] | None = None
    batch: int = 16
    context: int = 128
    width: int = 512
    depth: int = 4
    heads: int = 8
    experts: int = 8
    gated: bool = False
    target_share: float = 0.05
    lr: float = 1e-3
    scale_lr: float = 0.0
    seed: int = 0
    threads: int | None = None
    dtype: str = "float32"
    level: str = "byte"
    data: str | None = None
    eval_every: int = 50
    checkpoint_every: int = 100
    penalty: PenaltyOptions | None = None
    recipe_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        specs = [RunSpec.parse(run) for run in self.runs]
        object.__setattr__(self, "runs", tuple(map(str, specs)))
        if not specs or len(set(specs)) < len(specs):
            raise PatternError(
                f"train got the runs {list(self.runs)}; each must be named once: "
                "write for example dense,2:4:v4,90%"
            )
        sizes = ("steps", "batch", "context", "width", "depth", "heads", "experts", "eval_every")
        for name in sizes:
            _check_range(name, getattr(self, name), 1)
        _check_range("checkpoint_every", self.checkpoint_every, 0)
        _check_range("seed", self.seed, 0, 2**63 - 1)
        self._check_seconds()
        ActivationL1(target_share=self.target_share)
        if self.threads is not None:
            _check_range("threads", self.threads, 1)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ArgumentError(
                f"train got lr={self.lr}; it must be a positive number, such as 1e-3"
            )
        exponent_of(self.scale_lr, "train")
        if self.dtype not in DTYPES:
            raise DTypeError(f"train got dtype={self.dtype!r}; choose one of {sorted(DTYPES)}")
        if self.level not in ("byte", "char"):
            raise DataError(f"train got level={self.level!r}; choose byte or char")
        self._check_recipes([spec for spec in specs if spec.recipe is not None])

    def _check_seconds(self) -> None:
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ArgumentError(
                f"train got seconds={self.seconds}; it must be a positive number, such as 60"
            )
        if not self.equal_seconds and (self.seconds, self.run_steps) != (None, None):
            raise ArgumentError(
                f"train got seconds={self.seconds} without equal_seconds; give both, or steps"
            )
        if self.run_steps is not None:
            if len(self.run_steps) != len(self.runs):
                raise ArgumentError(
                    f"train got run_steps={list(self.run_steps)} for {len(self.runs)} runs; give "
                    "one number per run"
                )
            for steps in self.run_steps:
                _check_range("run_steps", steps, 1)

    def _check_recipes(self, specs: list[RunSpec]) -> None:
        if self.recipe_options and len(specs) != 1:
            raise RecipeError(
                f"train got recipe_options={list(self.recipe_options)} with {len(specs)} recipes; "
                "options belong to one: train one recipe at a time"
            )
        if specs and self.penalty is not None:
            raise RecipeError(
                f"train got penalty={self.penalty.name!r:.40} and the recipe {specs[0]}; a recipe "
                "brings its own optimizer steps: give one or the other"
            )
        for spec in specs:
            spec.make_recipe(self.seed, self.recipe_options)

    def steps_of(self, run: str) -> int:
        """Return the optimizer steps of a run."""
        if self.run_steps is not None and run not in self.runs:
            raise RecipeError(
                f"steps_of got the run {shown(run)}; choose one of {', '.join(self.runs)}"
            )
        return self.steps if self.run_steps is None else self.run_steps[self.runs.index(run)]

    @property
    def rounds(self) -> int:
        """Number of rounds, in each of which a run takes at most one step."""
        return self.steps if self.run_steps is None else max(self.run_steps)

    def due(self, turn: int) -> tuple[str, ...]:
        """Return the runs that take a step in a round, counted from 0; each evenly spread."""
        check(TrainConfig.due, locals())
        return tuple(
            run
            for run in self.runs
            if (turn + 1) * self.steps_of(run) // self.rounds
            > turn * self.steps_of(run) // self.rounds
        )

    def turns(self, rounds: int) -> list[tuple[int, str]]:
        """Return the step, counted from 1, and the run of each turn of the first rounds."""
        check(TrainConfig.turns, locals())
        taken = dict.fromkeys(self.runs, 0)
        found = []
        for turn in range(min(rounds, self.rounds)):
            for run in self.due(turn):
                taken[run] += 1
                found.append((taken[run], run))
        return found

    @property
    def tokens_per_step(self) -> int:
        """Number of training tokens per step."""
        return self.batch * self.context

    def options(self) -> dict[str, Any]:
        """Return the flat form, plain values by name, as in the command line and checkpoints.

        Example:
            >>> TrainConfig(penalty=PenaltyOptions("l1", lam=0.1)).options()["lam"]
            0.1
        """
        flat = {field.name: getattr(self, field.name) for field in fields(self)}
        penalty = self.penalty
        flat["penalty"] = penalty and penalty.name
        for option, name in PENALTY_OPTIONS.items():
            flat[option] = penalty and getattr(penalty, name)
        return flat

    @classmethod
    def from_options(cls, **options: Any) -> TrainConfig:
        """Make a configuration from its flat form; a missing option has its default.

        Args:
            options: values by name, as `options()` returns them.

        Raises:
            GossamerError: a value is out of range.

        Example:
            >>> TrainConfig.from_options(steps=10, penalty="l1", lam=0.1).penalty.lam
            0.1
        """
        own = {
            name: options.pop(option)
            for option, name in PENALTY_OPTIONS.items()
            if option in options
        }
        name = options.pop("penalty", None)
        if name is not None:
            return cls(penalty=PenaltyOptions(name, **own), **options)
        for option, field in PENALTY_OPTIONS.items():
            if own.get(field) is not None:
                raise PenaltyError(
                    f"train got {option}={own[field]!r:.40} without a penalty; name one as well, "
                    "such as wgsef"
                )
        return cls(**options)

    def with_options(self, **options: Any) -> TrainConfig:
        """Return a copy with some options changed, given in the flat form."""
        return self.from_options(**self.options() | options)


def _check_range(name: str, value: int, least: int, most: int = 2**31 - 1) -> None:
    if value < least:
        raise ArgumentError(f"train got {name}={value}; it must be at least {least}")
    if value > most:
        raise ArgumentError(f"train got {name}={value!s:.40}; it must be at most {most}")


# Dense, N:M and unstructured side by side, in about four minutes on two cores. A wide model spends
# nearly the whole step in matrix products. Byte level keeps the dense head small. Many short
# windows lower the loss most in few steps.
DEMO = TrainConfig(
    runs=(DENSE, "2:4:v4", "90%"),
    steps=500,
    batch=16,
    context=64,
    width=512,
    depth=2,
    heads=8,
    eval_every=50,
    checkpoint_every=250,
)
