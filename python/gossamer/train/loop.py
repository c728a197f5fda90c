"""One training run: a model, torch's AdamW, a schedule and a clock that counts its own steps.

The optimizer is torch.optim.AdamW as it is, or ProxAdamW where there is a penalty; a sparse weight
gives it an ordinary 1-D parameter.
"""

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from gossamer.errors import (
    DataError,
    DTypeError,
    GossamerError,
    PatternError,
    RecipeError,
    ShapeError,
)
from gossamer.optim import ProxAdamW
from gossamer.patterns import parse_pattern
from gossamer.recipes import Recipe
from gossamer.train import recipes
from gossamer.train.model import (
    GPT,
    ROUTERS,
    GPTConfig,
    Mixture,
    build_model,
    dense_parameters,
    parameter_groups,
)
from gossamer.train.penalised import Kept, kept, penalised_groups, penalty_of

DENSE = "dense"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
CLIP = 1.0
FINAL_LR = 0.1  # of the peak


@dataclass(frozen=True)
class TrainConfig:
    """What is trained, on what, and how.

    Args:
        runs: what to train side by side, each once: ``"dense"``, text of a pattern, or of a recipe
            and a pattern as ``"rigl@90%"``; with ``"+topk"`` or ``"+sinkhorn"`` behind it the MLPs
            are mixtures of experts.
        exclude: globs on module names; what they match stays dense.
        steps: optimizer steps of each run.
        batch: windows a step.
        context: tokens a window.
        width: features of the residual stream.
        depth: blocks.
        heads: attention heads a block.
        experts: MLPs a block of the runs that have a router.
        lr: peak learning rate.
        seed: of initial weights and data order.
        threads: of torch; None leaves its choice.
        dtype: ``"float32"``, or ``"bfloat16"`` for autocast.
        level: ``"byte"`` or ``"char"``.
        data: file or folder of text; None for the source of Python's standard library.
        eval_every: steps between two measurements of the validation loss.
        checkpoint_every: steps between two checkpoints; 0 writes one at the end only.
        penalty: name of a penalty on the weights of the linear layers, such as ``"wgsef"``,
            ``"l1"`` or ``"lp"``; ``exclude`` holds for it as well.
        lam: its strength.
        k: its budget, for those that have one: a number of groups, or a share such as ``"25%"``.
        p: its exponent, for those that have one.
        penalty_groups: its grouping, such as ``"neuron"``, ``"input"`` or ``"block(8, 8)"``; None
            is ``"neuron"`` for the penalties of groups and ``"element"`` for the others.
        recipe_options: hyper-parameters of the recipe as ``"name=value"``, where one run has one.

    Raises:
        GossamerError: a subclass of it for each value out of range.

    Example:
        >>> TrainConfig(runs=("dense", "2:4 : v4")).runs
        ('dense', '2:4:v4')
    """

    runs: tuple[str, ...] = ("2:4:v4",)
    exclude: tuple[str, ...] = ()
    steps: int = 500
    batch: int = 16
    context: int = 128
    width: int = 512
    depth: int = 4
    heads: int = 8
    experts: int = 8
    lr: float = 1e-3
    seed: int = 0
    threads: int | None = None
    dtype: str = "float32"
    level: str = "byte"
    data: str | None = None
    eval_every: int = 50
    checkpoint_every: int = 100
    penalty: str | None = None
    lam: float | None = None
    k: str | None = None
    p: float | None = None
    penalty_groups: str | None = None
    recipe_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "runs", tuple(map(_canonical, self.runs)))
        if not self.runs or len(set(self.runs)) < len(self.runs):
            raise PatternError(
                f"train got the runs {list(self.runs)}; each must be named once: "
                "write for example dense,2:4:v4,90%"
            )
        sizes = ("steps", "batch", "context", "width", "depth", "heads", "experts", "eval_every")
        for name in sizes:
            _at_least(name, getattr(self, name), 1)
        for name in ("seed", "checkpoint_every"):
            _at_least(name, getattr(self, name), 0)
        if self.threads is not None:
            _at_least("threads", self.threads, 1)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ShapeError(f"train got lr={self.lr}; it must be a positive number, such as 1e-3")
        if self.dtype not in DTYPES:
            raise DTypeError(f"train got dtype={self.dtype!r}; choose one of {sorted(DTYPES)}")
        if self.level not in ("byte", "char"):
            raise DataError(f"train got level={self.level!r}; choose byte or char")
        penalty_of(self)
        _check_recipes(self)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one step trains on."""
        return self.batch * self.context


def split_run(run: str) -> tuple[str, str | None]:
    """Split the name of a run into its pattern, or ``"dense"``, and its router, or None.

    Example:
        >>> split_run("2:4:v4+sinkhorn")
        ('2:4:v4', 'sinkhorn')
    """
    pattern, plus, router = run.partition("+")
    return pattern, router if plus else None


def _canonical(run: str) -> str:
    pattern, router = (part and part.strip() for part in split_run(run))
    if router is not None and router not in ROUTERS:
        raise PatternError(
            f"train got the run {run!r:.80}; behind + stands a router, {' or '.join(ROUTERS)}"
        )
    suffix = "" if router is None else f"+{router}"
    if pattern == DENSE:
        return DENSE + suffix
    try:
        if recipes.is_recipe(pattern or ""):
            return recipes.canonical(pattern or "") + suffix
        return str(parse_pattern(pattern or "")) + suffix
    except PatternError as error:
        raise PatternError(f'{error}; or "dense" for the dense network') from error


def _check_recipes(config: TrainConfig) -> None:
    named = [run for run in config.runs if recipes.is_recipe(split_run(run)[0])]
    if config.recipe_options and len(named) != 1:
        raise RecipeError(
            f"train got recipe_options={list(config.recipe_options)} with {len(named)} recipes; "
            "options belong to one: train one recipe at a time"
        )
    if named and config.penalty is not None:
        raise RecipeError(
            f"train got penalty={config.penalty!r:.40} and the recipe {named[0]}; a recipe brings "
            "its own optimizer steps: give one or the other"
        )
    for run in named:
        recipes.recipe_of(split_run(run)[0], config.seed, config.recipe_options)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ShapeError(f"train got {name}={value}; it must be at least {least}")


# Dense beside N:M and unstructured, in about four minutes on two cores. So wide that nearly all of
# a step is matrix products; byte level, so that the dense head is small; many short windows, from
# which a model learns most in so few steps.
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


def learning_rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up over a tenth of the run, then a cosine.

    Args:
        step: from 0.
        steps: of the whole run.

    Returns:
        A factor in (0, 1].

    Example:
        >>> [round(learning_rate(step, 100), 2) for step in (0, 9, 10, 99)]
        [0.1, 1.0, 1.0, 0.1]
    """
    warmup = min(100, max(1, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Run:
    """One model in training.

    Args:
        name: ``"dense"`` or text of a pattern or recipe, and its router.
        config: of the whole training; every run of it with the same router, or with none, starts
            from the same dense weights.
        vocabulary: number of tokens.

    Raises:
        PatternError: the pattern does not fit the model's sizes.
        RecipeError: the recipe's schedule is longer than the training.
    """

    def __init__(self, name: str, config: TrainConfig, vocabulary: int) -> None:
        self.name, self.config = name, config
        torch.manual_seed(config.seed)
        pattern, router = split_run(name)
        sizes = GPTConfig(vocabulary, config.context, config.width, config.depth, config.heads)
        if router is not None:
            sizes = replace(sizes, experts=config.experts, router=router)
        self.recipe: Recipe | None = None
        if recipes.is_recipe(pattern):
            self.recipe = recipes.recipe_of(pattern, config.seed, config.recipe_options)
            self.model = GPT(sizes)
            self.recipe.prepare(self.model, exclude=config.exclude, rescale=True)
            groups = recipes.groups_of(self.recipe, self.model, WEIGHT_DECAY)
        else:
            self.model = build_model(sizes, pattern, config.exclude)
            groups = parameter_groups(self.model, WEIGHT_DECAY)
        penalty = penalty_of(config)
        self.optimizer: torch.optim.AdamW
        if penalty is None:
            self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=BETAS, fused=True)
        else:
            groups = penalised_groups(self.model, groups, penalty, config.exclude)
            self.optimizer = ProxAdamW(groups, lr=config.lr, betas=BETAS, fused=True)
        self.scheduler = LambdaLR(self.optimizer, lambda step: learning_rate(step, config.steps))
        if self.recipe is not None:
            self.recipe.attach(self.model, self.optimizer, config.steps)
        self.masks = None if self.recipe is None else recipes.Masks(self.recipe)
        self.step_seconds: list[float] = []
        self.seconds = 0.0
        # Share of the tokens that each expert got, a list for each block: of the last step, and of
        # the last evaluation. Empty without a router.
        self.expert_load: list[list[float]] = []
        self.val_expert_load: list[list[float]] = []

    def step(self, inputs: Tensor, targets: Tensor) -> float:
        """Train on one batch and charge its time to this run's clock.

        Args:
            inputs: int64 ``[batch, context]``.
            targets: int64 ``[batch, context]``.

        Returns:
            The loss before the step, in nats.

        Raises:
            GossamerError: the loss is not finite.
        """
        self.model.train()
        start = time.perf_counter()
        self.optimizer.zero_grad()
        with self._autocast():
            loss = self.model.loss(inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        value = loss.item()
        if not math.isfinite(value):
            raise GossamerError(
                f"the loss of {self.name} is {value} at step {len(self.step_seconds) + 1}; "
                "training has diverged: lower --lr"
            )
        self.optimizer.step()
        recipes.follow_groups(self.scheduler)
        self.scheduler.step()
        self.step_seconds.append(time.perf_counter() - start)
        self.seconds += self.step_seconds[-1]
        self.expert_load = _shares(self._load())
        return value

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor) -> float:
        """Measure the mean loss on given windows; no clock counts it.

        Args:
            inputs: int64 ``[windows, context]``.
            targets: int64 ``[windows, context]``.

        Returns:
            The loss in nats.
        """
        self.model.eval()
        total = 0.0
        load = torch.zeros(())
        for start in range(0, len(inputs), self.config.batch):
            part = slice(start, start + self.config.batch)
            with self._autocast():
                loss = self.model.loss(inputs[part], targets[part])
            total += loss.item() * len(inputs[part])
            load = load + self._load()
        self.val_expert_load = _shares(load)
        return total / len(inputs)

    def _load(self) -> Tensor:
        """Tokens that each expert got in the last forward pass [blocks, experts]."""
        mixtures = [module for module in self.model.modules() if isinstance(module, Mixture)]
        loads = [mixture.load for mixture in mixtures if mixture.load is not None]
        return torch.stack(loads) if loads else torch.zeros(0, 0)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Of the model; a recipe may add some on the way."""
        return list(self.model.parameters())

    def _autocast(self) -> torch.autocast:
        dtype = DTYPES[self.config.dtype]
        return torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16)

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    @property
    def density(self) -> float:
        """Share of the dense twin's parameters that this model has and no penalty has zeroed."""
        dense = dense_parameters(self.model.config)
        if self.recipe is not None:
            return recipes.density_of(self.model, self.recipe, dense)
        count = sum(p.numel() for p in self.parameters)
        if isinstance(self.optimizer, ProxAdamW):
            counts = self.optimizer.sparsity().values()
            count = sum(parameter.entries - parameter.zeros for parameter in counts)
        return count / dense

    @property
    def kept(self) -> Kept | None:
        """What is left of the penalised weights, or None without a penalty."""
        return kept(self.optimizer) if isinstance(self.optimizer, ProxAdamW) else None

    @property
    def state_bytes(self) -> int:
        """Bytes of weights, structure, gradients and optimizer state, once it has stepped."""
        return recipes.state_bytes(self.model, self.optimizer, self.recipe)

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint needs: see ``parts`` and ``step_seconds``."""
        states = {name: part.state_dict() for name, part in self.parts.items()}
        return states | {"step_seconds": torch.tensor(self.step_seconds, dtype=torch.float64)}

    @property
    def parts(self) -> dict[str, Any]:
        """The objects whose states make up a checkpoint, by name; restore a recipe first."""
        found = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        if self.recipe is not None:
            found |= {"recipe": self.recipe, "masks": self.masks}
        return found


def _shares(load: Tensor) -> list[list[float]]:
    shares: list[list[float]] = (load.double() / load.sum(-1, keepdim=True)).tolist()
    return shares
