"""Recipe: the base of all recipes.

A recipe is a dataclass of hyper-parameters with three hooks: what a linear layer becomes, what is
done before a step of the optimizer (the gradients are there), and what is done after it. It is
attached through torch's own optimizer hooks, so the optimizer stays itself, and schedulers,
clipping and gradient scaling work as ever.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gossamer.errors import RecipeError
from gossamer.masks import Distribution
from gossamer.nn import MaskedLinear, SparseLinear
from gossamer.nn.sites import Globs
from gossamer.nn.surgery import replace_linears, replace_modules
from gossamer.patterns import Pattern, as_integer, parse_pattern
from gossamer.recipes.fields import check_fields

Layer = TypeVar("Layer", bound=nn.Module)

# Which recipe made a layer, and which one is attached to it now. Neither belongs to the layer's
# state: a copied or loaded model is prepared, but nobody is attached to it.
_MADE_BY = "_gossamer_recipe"
_ATTACHED: weakref.WeakKeyDictionary[nn.Module, Recipe] = weakref.WeakKeyDictionary()


@dataclass(eq=False)
class Recipe:
    """The base of all recipes; on its own it makes layers of a moving mask and does nothing else.

    A subclass is a dataclass with fields of its own behind `pattern` and overrides, as it needs,
    the hooks `layer`, `before_step` and `after_step`, and `start`, which is called once when it is
    attached. Steps are counted from 0. What must survive a checkpoint beyond the model and the
    optimizer goes into `self.state`: tensors, numbers and texts by name.

    Args:
        pattern: which entries may live in the end, or its text.

    Raises:
        PatternError: no such pattern.

    Example:
        >>> import torch
        >>> recipe = Recipe("2:4")
        >>> model = recipe.prepare(torch.nn.Sequential(torch.nn.Linear(8, 4)))
        >>> optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.1)
        >>> recipe.attach(model, optimizer, total_steps=10)
        >>> recipe.layers
        {'0': MaskedLinear(in_features=8, out_features=4, bias=True, pattern=2:4, moving=True)}
    """

    pattern: str | Pattern = "2:4"

    def __post_init__(self) -> None:
        check_fields(self)
        self.pattern: Pattern = parse_pattern(self.pattern)
        self.state: dict[str, Any] = {}
        self.layers: dict[str, nn.Module] = {}
        self.step = 0
        self.total_steps = 0
        self.optimizer: torch.optim.Optimizer | None = None
        self._group: Any = None
        self._handles: list[Any] = []

    # ---- the hooks -----------------------------------------------------------------------------

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """What an `nn.Linear` becomes.

        Args:
            name: of the layer in the model.
            linear: `nn.Linear` or `Conv1D`; may be taken apart.
            pattern: of this layer, whose share of a global sparsity it has.
            index: of the layer, from 0.
        """
        return MaskedLinear.from_dense(linear, pattern)

    def start(self) -> None:
        """Called once by `attach`, when `layers`, `optimizer` and `total_steps` are known."""

    def before_step(self, t: int) -> None:
        """Called before the optimizer's step t, from 0; without autograd."""

    def after_step(self, t: int) -> None:
        """Called after the optimizer's step t; without autograd."""

    def minimum_steps(self) -> int:
        """The fewest steps that the schedule fits into."""
        return 1

    # ---- what a user calls ---------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The class and its hyper-parameters: what a checkpoint is compared with."""
        return repr(self)

    def prepare(
        self,
        model: nn.Module,
        include: Globs = ("*",),
        exclude: Globs = (),
        rescale: bool = False,
    ) -> nn.Module:
        """Replace the linear layers of a model, in place. Build the optimizer afterwards.

        Args:
            model: any module; when it is a linear layer itself, use what is returned.
            include: globs of modules to be taken, as in `gossamer.sparsify`.
            exclude: globs of modules to be left dense.
            rescale: scale the kept entries of layers that store nothing else until each weight has
                the Frobenius norm that it had when dense. For training from scratch (Evci et al.
                2022); it would spoil trained weights.

        Returns:
            The model.

        Raises:
            PatternError: a layer does not fit the pattern; the model is unchanged.
            RecipeError: the model was prepared already.
        """
        self.check_fresh(model)

        def make(name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
            norm = linear.weight.detach().norm()  # type: ignore[operator]
            layer = self.layer(name, linear, pattern, index)
            if rescale and isinstance(layer, SparseLinear) and layer.weight.nnz:
                with torch.no_grad():
                    layer.weight.values.mul_(norm / layer.weight.values.norm())
            object.__setattr__(layer, _MADE_BY, self.name)
            return layer

        distribution: Distribution = getattr(self, "distribution", "uniform")
        return replace_linears(model, make, self.pattern, include, exclude, distribution)

    def parameters(self, model: nn.Module) -> Iterable[Any]:
        """The parameters of a prepared model, or groups of them, for an optimizer."""
        return list(model.parameters())

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        """Follow the optimizer's steps from now on.

        Args:
            model: the prepared model, or the DistributedDataParallel around it.
            optimizer: holds the parameters of the prepared layers. Its `step` is called without a
                closure.
            total_steps: of the whole training.

        Raises:
            RecipeError: the model was not prepared by this recipe, something is attached to it
                already, the optimizer misses parameters, or the schedule is longer than the
                training. Nothing changed then.
        """
        total_steps = as_integer(total_steps, f"{type(self).__name__}.attach got total_steps")
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
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]
        for layer in layers.values():
            _ATTACHED[layer] = self

    def detach(self) -> None:
        """Leave optimizer and model to themselves; the masks stay as they are."""
        for handle in self._handles:
            handle.remove()
        for layer in self.layers.values():
            _ATTACHED.pop(layer, None)
        self._forget()

    def finish(self, model: nn.Module) -> nn.Module:
        """Turn the trained model into one that stores kept entries only, in place.

        Returns:
            The model, whose layers are `SparseLinear`; detached from the recipe.
        """
        self.detach()
        return replace_modules(
            model, {m: m.to_sparse() for m in model.modules() if isinstance(m, MaskedLinear)}
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the recipe beside the model and the optimizer."""
        copies = {k: v.clone() if isinstance(v, Tensor) else v for k, v in self.state.items()}
        return {
            "recipe": self.name, "total_steps": self.total_steps, "step": self.step,
            "state": copies,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume. Attach first, load this, then the model's state, then the optimizer's.

        Raises:
            RecipeError: the state is of another recipe, pattern or length; nothing changed.
        """
        if not self.layers:
            raise RecipeError("load_state_dict was called before attach; attach the recipe first")
        for key, mine in (("recipe", self.name), ("total_steps", self.total_steps)):
            if key not in state or state[key] != mine:
                raise RecipeError(
                    f"the checkpoint's {key} is {state.get(key)!r}, this training's {mine!r}; "
                    "resume with the recipe, the pattern and the steps that were saved"
                )
        saved = state.get("state")
        if not isinstance(state.get("step"), int) or not isinstance(saved, Mapping):
            raise RecipeError("the checkpoint of the recipe is damaged; use another copy")
        self.step = state["step"]
        self.state = {k: v.clone() if isinstance(v, Tensor) else v for k, v in saved.items()}

    # ---- what subclasses use -------------------------------------------------------------------

    def check_fresh(self, model: nn.Module) -> None:
        """Raise RecipeError when a recipe has prepared a layer of the model."""
        for name, module in model.named_modules():
            if (maker := getattr(module, _MADE_BY, None)) is not None:
                raise RecipeError(
                    f"layer {name!r} was prepared by {maker}; a model is prepared once: "
                    "prepare a fresh copy of the dense model"
                )

    def of_type(self, kind: type[Layer]) -> Iterator[tuple[int, str, Layer]]:
        """The (index, name, layer) of each layer of a class."""
        for index, (name, layer) in enumerate(self.layers.items()):
            if isinstance(layer, kind):
                yield index, name, layer

    def lr_of(self, parameter: nn.Parameter) -> float:
        """The learning rate of a parameter at this step."""
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        for group in groups:
            if any(p is parameter for p in group["params"]):
                return float(group["lr"])
        raise RecipeError("the optimizer no longer holds a parameter of a prepared layer")

    def average(self, tensor: Tensor) -> Tensor:
        """The mean over all processes of a DistributedDataParallel model, in place."""
        if self._group is not None and torch.distributed.get_world_size(self._group) > 1:
            torch.distributed.all_reduce(tensor, group=self._group)
            tensor /= torch.distributed.get_world_size(self._group)
        return tensor

    def generator(self, t: int, index: int, seed: int) -> torch.Generator:
        """Random numbers that depend on nothing but seed, step and layer."""
        mixed = ((seed * 0x9E3779B97F4A7C15 + t) * 0xBF58476D1CE4E5B9 + index) % 2**63
        return torch.Generator("cpu").manual_seed(mixed)

    # ---- inside --------------------------------------------------------------------------------

    def _made_here(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        makers = set()
        found = False
        for name, module in model.named_modules():
            maker = getattr(module, _MADE_BY, None)
            if maker == self.name:
                found = True
                yield name, module
            elif maker is not None:
                makers.add(maker)
        if not found:
            by = f"it was prepared by {', '.join(sorted(makers))}" if makers else "it was not"
            raise RecipeError(
                f"attach needs a model prepared by {self.name}; {by}: "
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
                    f"layer {name!r} has a recipe attached already ({_ATTACHED[layer].name}); "
                    "detach() that one first"
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

    def _before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(callable(a) for a in (*args, *kwargs.values())):
            raise RecipeError(
                f"step() was called with a closure; {type(self).__name__} needs the gradients "
                "before the step: call backward() and then step() without one"
            )
        with torch.no_grad():
            self.before_step(self.step)

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            self.after_step(self.step)
        self.step += 1
