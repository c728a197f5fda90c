"""Recipe: the base class of all recipes.

A recipe is a dataclass of hyper-parameters with three hooks: `layer` replaces a linear layer,
`before_step` runs before a step of the optimizer (gradients are there), `after_step` after it. It
is attached through torch's optimizer hooks (`base.steps`): the optimizer is not wrapped, so
schedulers, clipping, closures and gradient scaling work unchanged.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar, get_args

import torch
from torch import Tensor, nn

from gossamer.errors import PatternError, RecipeError
from gossamer.masks import Distribution
from gossamer.nn import MaskedLayer
from gossamer.nn.lr_scaling import exponent_of, follow_density, scaled_groups
from gossamer.nn.sites import Globs
from gossamer.nn.surgery import replace_linears, replace_modules
from gossamer.patterns import NM, GroupedNM, Nonzeros, Pattern, as_integer, parse_pattern
from gossamer.recipes.base.checks import check_choice, check_fields
from gossamer.recipes.base.identity import describe, difference, identity, recipe_id
from gossamer.recipes.base.steps import follow, unwrapped

Layer = TypeVar("Layer", bound=nn.Module)

# The identity of the recipe that made a layer, and the recipe that is attached to it now. Neither
# belongs to the layer's state: a copied or loaded model is prepared, but not attached.
_MADE_BY = "_gossamer_recipe"
_ATTACHED: weakref.WeakKeyDictionary[nn.Module, Recipe] = weakref.WeakKeyDictionary()


@dataclass(eq=False)
class Recipe(ABC):
    """The base class of all recipes.

    A subclass is a dataclass that adds its own fields and overrides the hooks it needs: `layer`
    (always), `start` (called once by `attach`), `before_step` and `after_step`. Steps are counted
    from 0. Whatever a checkpoint must keep beyond the model and the optimizer goes into
    `self.state`: tensors, numbers and texts by name.

    Args:
        pattern: which entries are kept in the end: a pattern or its text.
        distribution: how layers share the sparsity. "uniform": every layer has the same. "erk":
            smaller layers stay denser (see `gossamer.masks.allocate`). None is the recipe's usual
            one. N:M patterns have a fixed density: only "uniform" is allowed.

    Attributes:
        id: identifies the class in checkpoints; without one it is the first registered name.
        renamed: present name by former name of a field, so that checkpoints and options with the
            former name are still read.

    Raises:
        PatternError: an unknown pattern, or "erk" for an N:M pattern.
        RecipeError: an unknown distribution.
        DTypeError: a field has another type than its annotation.

    Example:
        >>> import torch
        >>> from gossamer.recipes import STE
        >>> recipe = STE("2:4")
        >>> model = recipe.prepare(torch.nn.Sequential(torch.nn.Linear(8, 4)))
        >>> optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.1)
        >>> recipe.attach(model, optimizer, total_steps=10)
        >>> list(recipe.layers)
        ['0']
    """

    pattern: str | Pattern = "2:4"
    distribution: Distribution | None = field(default="uniform", kw_only=True)

    id: ClassVar[str] = ""
    renamed: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        check_fields(self)
        self.pattern: Pattern = parse_pattern(self.pattern)
        self._check_distribution()
        self.state: dict[str, Any] = {}
        self.layers: dict[str, nn.Module] = {}
        self.step = 0
        self.evaluation = 0
        self.total_steps = 0
        self.optimizer: torch.optim.Optimizer | None = None
        self._group: Any = None
        self._handles: list[Any] = []

    # ---- the hooks -----------------------------------------------------------------------------

    @abstractmethod
    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """Build the layer that replaces a linear layer.

        Args:
            name: name of the layer in the model.
            linear: an `nn.Linear` or `Conv1D`; its parameters may be reused.
            pattern: the layer's pattern, with its share of the sparsity.
            index: number of the layer, from 0.
        """

    def start(self) -> None:  # noqa: B027
        """Called once by `attach`, when `layers`, `optimizer` and `total_steps` are set."""

    def before_step(self, t: int) -> None:  # noqa: B027
        """Called when the gradients of the optimizer's step t are there, without autograd.

        An optimizer that calls its closure several times per step (L-BFGS) has new gradients each
        time, and this is called after each; `self.evaluation` counts the calls from 0.
        """

    def after_step(self, t: int) -> None:  # noqa: B027
        """Called after the optimizer's step t, without autograd."""

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups of a prepared model, with what the recipe sets of them."""
        return [{"params": list(model.parameters())}]

    def minimum_steps(self) -> int:
        """Smallest number of steps that the schedule fits into."""
        return 1

    def usual_distribution(self) -> Distribution:
        """The distribution that None stands for."""
        return "uniform"

    # ---- what a user calls ---------------------------------------------------------------------

    def prepare(
        self,
        model: nn.Module,
        include: Globs = ("*",),
        exclude: Globs = (),
        rescale: bool = False,
    ) -> nn.Module:
        """Replace the linear layers of a model in place. Build the optimizer afterwards.

        Args:
            model: any module; if it is a linear layer itself, use the returned one.
            include: globs of modules to replace, as in `gossamer.sparsify`.
            exclude: globs of modules to leave dense.
            rescale: scale each weight of a layer that stores kept entries only, so that its
                Frobenius norm stays that of the dense weight. For training from scratch (Evci et
                al. 2022); it would damage trained weights.

        Returns:
            The model.

        Raises:
            PatternError: a layer does not fit the pattern; the model is unchanged.
            RecipeError: a recipe has prepared the model already.
        """
        self.check_fresh(model)

        def make(name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
            norm = linear.weight.detach().norm()  # type: ignore[operator]
            layer = self.layer(name, linear, pattern, index)
            sparse = layer.sparse_weight if isinstance(layer, MaskedLayer) else None
            if rescale and sparse is not None and sparse.nnz:
                with torch.no_grad():
                    sparse.values.mul_(norm / sparse.values.norm())
            object.__setattr__(layer, _MADE_BY, mine)
            return layer

        mine = identity(self)
        distribution = self.distribution or self.usual_distribution()
        return replace_linears(model, make, self.pattern, include, exclude, distribution)

    def parameters(self, model: nn.Module, scale_lr: float = False) -> list[dict[str, Any]]:
        """Return the parameter groups of a prepared model, for an optimizer.

        With `scale_lr` the rate of each weight with a mask follows its density, also while the
        recipe prunes: see `gossamer.parameter_groups`.
        """
        exponent = exponent_of(scale_lr, f"{type(self).__name__}.parameters")
        return scaled_groups(self.groups(model), model, exponent)

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        """Follow the optimizer's steps from now on.

        Args:
            model: the prepared model, or the DistributedDataParallel around it.
            optimizer: an optimizer that holds the parameters of the prepared layers, or a
                trainer's wrapper around it. If its `step` gets a closure, as trainers give it, the
                recipe acts after the closure has run.
            total_steps: number of steps of the whole training.

        Raises:
            RecipeError: the model was not prepared by this recipe, a recipe is attached to it
                already, the optimizer misses parameters, or the schedule is longer than the
                training; nothing changes.
        """
        total_steps = as_integer(total_steps, f"{type(self).__name__}.attach got total_steps")
        optimizer = unwrapped(optimizer)
        group = getattr(model, "process_group", None)
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        layers = dict(self._made_here(inner))
        self._check_free(layers)
        self._check_optimizer(layers, optimizer)
        if total_steps < (needed := self.minimum_steps()):
            raise RecipeError(
                f"{type(self).__name__}.attach got total_steps={total_steps}; its schedule needs "
                f"at least {needed} steps: train longer, or shorten the schedule"
            )
        self.layers, self.optimizer, self.total_steps = layers, optimizer, total_steps
        self.step, self.state, self._group = 0, {}, group
        try:
            with torch.no_grad():
                self.start()
        except BaseException:
            self._forget()
            raise
        follow_density(optimizer, layers.values())
        self._handles = follow(optimizer, self._before, self._after)
        for layer in layers.values():
            _ATTACHED[layer] = self

    def detach(self) -> None:
        """Remove the hooks from the optimizer; the model and its masks stay as they are."""
        for handle in self._handles:
            handle.remove()
        for layer in self.layers.values():
            _ATTACHED.pop(layer, None)
        self._forget()

    def finish(self, model: nn.Module) -> nn.Module:
        """Detach, and replace masked layers by `SparseLinear` in place.

        Returns:
            The model, which stores kept entries only.
        """
        self.detach()
        stored_dense = [
            module
            for module in model.modules()
            if isinstance(module, MaskedLayer) and module.sparse_weight is None
        ]
        return replace_modules(model, {layer: self.finished(layer) for layer in stored_dense})

    def finished(self, layer: MaskedLayer) -> nn.Module:
        """Return what `finish` replaces a masked layer by."""
        return layer.to_sparse()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the recipe: id, fields, steps and `state`."""
        copies = {k: v.clone() if isinstance(v, Tensor) else v for k, v in self.state.items()}
        return identity(self) | {
            "total_steps": self.total_steps, "step": self.step, "state": copies,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume. Attach first, load this, then the model's state, then the optimizer's.

        A field that the checkpoint misses counts as its default; one that is unknown here is
        ignored.

        Raises:
            RecipeError: the state belongs to another recipe, other fields or another number of
                steps; nothing changes.
        """
        if not self.layers:
            raise RecipeError("load_state_dict was called before attach; attach the recipe first")
        # Older versions saved the repr of the recipe, without fields.
        differs = difference(state if "fields" in state else state.get("recipe"), self)
        what = "recipe"
        if differs is None and state.get("total_steps") != self.total_steps:
            what = "total_steps"
            differs = f"is {state.get(what)!r}, this training's {self.total_steps!r}"
        if differs is not None:
            raise RecipeError(
                f"the checkpoint's {what} {differs}; resume with the recipe, the pattern and the "
                "steps that were saved"
            )
        saved = state.get("state")
        if not isinstance(state.get("step"), int) or not isinstance(saved, Mapping):
            raise RecipeError("the checkpoint of the recipe is damaged; use another copy")
        self.step = state["step"]
        self.state = {k: v.clone() if isinstance(v, Tensor) else v for k, v in saved.items()}

    # ---- what subclasses use -------------------------------------------------------------------

    def check_fresh(self, model: nn.Module) -> None:
        """Raise RecipeError if a recipe has prepared a layer of the model."""
        for name, module in model.named_modules():
            if (maker := getattr(module, _MADE_BY, None)) is not None:
                raise RecipeError(
                    f"layer {name!r} was prepared by {describe(maker)}; a model is prepared once: "
                    "prepare a fresh copy of the dense model"
                )

    def of_type(self, kind: type[Layer]) -> Iterator[tuple[int, str, Layer]]:
        """Yield the (index, name, layer) of each layer of a class."""
        for index, (name, layer) in enumerate(self.layers.items()):
            if isinstance(layer, kind):
                yield index, name, layer

    def lr_of(self, parameter: nn.Parameter) -> float:
        """Return the learning rate of a parameter at this step, with its factor."""
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        for group in groups:
            if any(p is parameter for p in group["params"]):
                return float(group["lr"])
        raise RecipeError("the optimizer no longer holds a parameter of a prepared layer")

    def average(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its mean over all processes of a DistributedDataParallel model."""
        if self._group is not None and torch.distributed.get_world_size(self._group) > 1:
            torch.distributed.all_reduce(tensor, group=self._group)
            tensor /= torch.distributed.get_world_size(self._group)
        return tensor

    def generator(self, t: int, index: int, seed: int) -> torch.Generator:
        """Return a generator that depends on the seed, the step and the layer alone."""
        mixed = ((seed * 0x9E3779B97F4A7C15 + t) * 0xBF58476D1CE4E5B9 + index) % 2**63
        return torch.Generator("cpu").manual_seed(mixed)

    # ---- inside --------------------------------------------------------------------------------

    def _check_distribution(self) -> None:
        who = type(self).__name__
        if isinstance(self.pattern, Nonzeros):
            raise PatternError(
                f"{who} got pattern {self.pattern}; a recipe chooses the mask itself: choose a "
                'pattern such as "90%", or train the zeros of a model with sparsify'
            )
        fixed = isinstance(self.pattern, NM | GroupedNM)
        if self.distribution is None:
            self.distribution = "uniform" if fixed else self.usual_distribution()
        check_choice(self.distribution, f"{who} got distribution", get_args(Distribution))
        if fixed and self.distribution != "uniform":
            raise PatternError(
                f"{who} got distribution={self.distribution!r} with pattern {self.pattern}, whose "
                "density is the same everywhere: choose 'uniform', or a pattern such as '90%'"
            )

    def _made_here(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        makers = set()
        found = False
        for name, module in model.named_modules():
            maker = getattr(module, _MADE_BY, None)
            if maker is None:
                continue
            if difference(maker, self) is None:
                found = True
                yield name, module
            else:
                makers.add(describe(maker))
        if not found:
            by = f"it was prepared by {', '.join(sorted(makers))}" if makers else "it was not"
            raise RecipeError(
                f"attach needs a model prepared by {describe(identity(self))}; {by}: "
                "call prepare(model) of the same recipe before the optimizer is built"
            )

    def _check_free(self, layers: Mapping[str, nn.Module]) -> None:
        if self.layers:
            raise RecipeError(
                f"{type(self).__name__} is attached already; detach() it, or make another recipe"
            )
        for name, layer in layers.items():
            if layer in _ATTACHED:
                raise RecipeError(
                    f"layer {name!r} has a recipe attached already "
                    f"({recipe_id(type(_ATTACHED[layer]))}); detach() that one first"
                )

    def _check_optimizer(
        self, layers: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
    ) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [
            f"{name}.{own}"
            for name, layer in layers.items()
            for own, parameter in layer.named_parameters()
            if parameter.requires_grad and id(parameter) not in held
        ]
        if missing:
            raise RecipeError(
                f"the optimizer misses {', '.join(missing[:5])}"
                f"{' …' if len(missing) > 5 else ''}; build it after prepare(), from "
                "recipe.parameters(model)"
            )

    def _forget(self) -> None:
        self.layers, self.optimizer, self._handles, self._group = {}, None, [], None

    def _before(self, evaluation: int) -> None:
        self.evaluation = evaluation
        self.before_step(self.step)

    def _after(self) -> None:
        self.after_step(self.step)
        if self.optimizer is not None:
            follow_density(self.optimizer, self.layers.values())
        self.step += 1
