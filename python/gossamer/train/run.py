"""One training run: a model, its optimizer, its schedule and a clock of its own steps.

The optimizer is torch.optim.AdamW unchanged, or ProxAdamW if there is a penalty. For both, the
values of a sparse weight are an ordinary 1-D parameter.
"""

import math
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from gossamer.arguments import check
from gossamer.errors import GossamerError
from gossamer.nn import ActivationSparseFFN
from gossamer.optim import ProxAdamW
from gossamer.recipes import ActivationL1
from gossamer.train import ranks
from gossamer.train.activations import use_sparse_activations
from gossamer.train.config import DTYPES, TrainConfig
from gossamer.train.groups import follow_groups, parameter_groups, penalised_groups, recipe_groups
from gossamer.train.masks import Masks
from gossamer.train.model import GPT, GPTConfig, Mixture, build_model, dense_parameters
from gossamer.train.penalty import Kept, kept
from gossamer.train.size import density_of, state_bytes
from gossamer.train.spec import RunSpec

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
CLIP = 1.0
FINAL_LR = 0.1  # of the peak


def learning_rate(step: int, steps: int) -> float:
    """Return the share of the peak learning rate: linear warm-up for a tenth, then a cosine.

    Args:
        step: number of the step, from 0.
        steps: number of steps of the run.

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
        name: text of the run, as `RunSpec` reads it.
        config: configuration of the training. All its runs start from the same dense weights,
            except those with a router.
        vocabulary: number of tokens.

    Raises:
        PatternError: the pattern does not fit the model's sizes.
        RecipeError: the recipe's schedule is longer than the training.
    """

    def __init__(self, name: str, config: TrainConfig, vocabulary: int) -> None:
        check(Run.__init__, locals())
        self.name = name
        self.config = config
        torch.manual_seed(config.seed)
        spec = RunSpec.parse(name)
        sizes = GPTConfig(
            vocabulary, config.context, config.width, config.depth, config.heads,
            experts=config.experts if spec.router else 1, router=spec.router, gated=config.gated,
        )  # fmt: skip
        self.steps = config.steps_of(name)
        change = use_sparse_activations if spec.activations else None
        self.recipe = spec.make_recipe(config.seed, config.recipe_options)
        if self.recipe is None:
            self.model = build_model(sizes, spec.pattern, config.exclude, change)
            groups = parameter_groups(self.model, WEIGHT_DECAY, config.scale_lr)
        else:
            self.model = GPT(sizes)
            if change is not None:
                change(self.model)
            exclude = (*config.exclude, *ActivationSparseFFN.find_in(self.model))
            self.recipe.prepare(self.model, exclude=exclude, rescale=True)
            groups = recipe_groups(self.recipe, self.model, WEIGHT_DECAY, config.scale_lr)
        self.optimizer: torch.optim.AdamW
        if config.penalty is None:
            self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=BETAS, fused=True)
        else:
            penalty = config.penalty.penalty(self.steps)
            groups = penalised_groups(self.model, groups, penalty, config.exclude)
            self.optimizer = ProxAdamW(groups, lr=config.lr, betas=BETAS, fused=True)
        self.scheduler = LambdaLR(self.optimizer, self._learning_rate)
        self._averaged = ranks.averaged(self.model)
        self.masks: Masks | None = None
        if self.recipe is not None:
            self.recipe.attach(self._averaged, self.optimizer, self.steps)
            self.masks = Masks(self.recipe)
        self.activations: ActivationL1 | None = None
        if spec.activations:
            self.activations = ActivationL1(target_share=config.target_share)
            self.activations.attach(self._averaged, self.optimizer, self.steps)
        self.step_seconds: list[float] = []
        self.seconds = 0.0
        # Share of tokens per expert, one list per block, in the last step and in the last
        # evaluation; empty without a router.
        self.expert_load: list[list[float]] = []
        self.val_expert_load: list[list[float]] = []

    def _learning_rate(self, step: int) -> float:
        recipe = self.recipe
        place = (step, self.steps) if recipe is None else recipe.position(step, self.steps)
        return learning_rate(*place)

    def step(self, inputs: Tensor, targets: Tensor) -> float:
        """Train on one batch and add its time to this run's clock.

        Args:
            inputs: int64 `[batch, context]`.
            targets: int64 `[batch, context]`.

        Returns:
            The loss before the step, in nats.

        Raises:
            GossamerError: the loss is not finite.
        """
        self.model.train()
        start = time.perf_counter()
        self.optimizer.zero_grad()
        with self._autocast():
            loss = self._averaged(ranks.share(inputs), ranks.share(targets))
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        value = ranks.mean(loss.detach().clone()).item()
        if not math.isfinite(value):
            raise GossamerError(
                f"the loss of {self.name} is {value} at step {len(self.step_seconds) + 1}; "
                "training has diverged: lower --lr"
            )
        self.optimizer.step()
        follow_groups(self.scheduler)
        self.scheduler.step()
        self.step_seconds.append(time.perf_counter() - start)
        self.seconds += self.step_seconds[-1]
        self.expert_load = _shares(ranks.mean(self._load().float()))
        return value

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor) -> float:
        """Measure the mean loss on given windows, outside the run's clock.

        Args:
            inputs: int64 `[windows, context]`.
            targets: int64 `[windows, context]`.

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
        """Return the tokens per expert in the last forward pass, [blocks, experts]."""
        mixtures = [module for module in self.model.modules() if isinstance(module, Mixture)]
        loads = [mixture.load for mixture in mixtures if mixture.load is not None]
        return torch.stack(loads) if loads else torch.zeros(0, 0)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the model; a recipe may add some during training."""
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
        """Parameters that no penalty has zeroed, over the dense model's parameters."""
        dense = dense_parameters(self.model.config)
        if self.recipe is not None:
            return density_of(self.model, self.recipe, dense)
        count = sum(p.numel() for p in self.parameters)
        if isinstance(self.optimizer, ProxAdamW):
            counts = self.optimizer.sparsity().values()
            count = sum(parameter.entries - parameter.zeros for parameter in counts)
        return count / dense

    @property
    def kept(self) -> Kept | None:
        """The counts of the kept penalised weights, or None without a penalty."""
        return kept(self.optimizer) if isinstance(self.optimizer, ProxAdamW) else None

    @property
    def state_bytes(self) -> int:
        """Bytes of weights, structure, gradients and optimizer state, after the first step."""
        return state_bytes(self.model, self.optimizer, self.recipe)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint: the states of `parts`, and `step_seconds`."""
        states = {name: part.state_dict() for name, part in self.parts.items()}
        return states | {"step_seconds": torch.tensor(self.step_seconds, dtype=torch.float64)}

    @property
    def parts(self) -> dict[str, Any]:
        """The objects whose states a checkpoint holds, by name; restore a recipe first."""
        found = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        if self.recipe is not None:
            found |= {"recipe": self.recipe, "masks": self.masks}
        if self.activations is not None:
            found["activations"] = self.activations
        return found


def _shares(load: Tensor) -> list[list[float]]:
    shares: list[list[float]] = (load.double() / load.sum(-1, keepdim=True)).tolist()
    return shares
