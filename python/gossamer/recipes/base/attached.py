"""Attached: what follows the steps of an optimizer, acts on some layers, and can be resumed.

It is attached through torch's optimizer hooks (`optim.steps`): the optimizer is not wrapped, so
schedulers, clipping, closures and gradient scaling work unchanged. Recipes that move masks are the
subclass `Recipe`.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from gossamer.arguments import check
from gossamer.distributed.groups import groups_over
from gossamer.distributed.structure import compare, holders_of, mask_checksums
from gossamer.errors import RecipeError
from gossamer.nn.lr_scaling import follow_density
from gossamer.optim.steps import follow, unwrapped
from gossamer.patterns import as_integer
from gossamer.recipes.base.checks import check_fields
from gossamer.recipes.base.identity import difference, identity, recipe_id
from gossamer.weight.sharding import is_sharded

Layer = TypeVar("Layer", bound=nn.Module)

# The recipe that is attached to a layer now. It does not belong to the layer's state: a copied or
# loaded model is not attached.
_ATTACHED: weakref.WeakKeyDictionary[nn.Module, Attached] = weakref.WeakKeyDictionary()


@dataclass(eq=False)
class Attached(ABC):
    """Follows the steps of an optimizer and acts on some layers of a model.

    A subclass is a dataclass that adds its own fields, overrides `find`, and those of `start`,
    `before_step` and `after_step` that it needs. Steps are counted from 0. Whatever a checkpoint
    must keep beyond the model and the optimizer goes into `self.state`: tensors, numbers and texts
    by name.

    Attributes:
        id: identifies the class in checkpoints; without one it is the first registered name.
        renamed: present name by former name of a field, so that checkpoints and options with the
            former name are still read.

    Raises:
        DTypeError: a field has another type than its annotation.
    """

    id: ClassVar[str] = ""
    renamed: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        check_fields(self)
        self.state: dict[str, Any] = {}
        self.layers: dict[str, nn.Module] = {}
        self.step = 0
        self.evaluation = 0
        self.total_steps = 0
        self.optimizer: torch.optim.Optimizer | None = None
        self._groups: list[Any] = []
        self._holders: dict[str, nn.Module] = {}
        self._checksums: tuple[int | None, ...] = ()
        self._resumed: dict[str, int] = {}  # checksums of the masks that a checkpoint belongs to
        self._handles: list[Any] = []

    # ---- the hooks -----------------------------------------------------------------------------

    @abstractmethod
    def find(self, model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
        """Return the layers to act on, with their names.

        Raises:
            RecipeError: there are none.
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

    def minimum_steps(self) -> int:
        """Smallest number of steps that the schedule fits into."""
        return 1

    def position(self, step: int, total_steps: int) -> tuple[int, int]:
        """Return the step, and of how many, by which a learning rate should go.

        They are those of the whole training, unless the recipe sets weights back: then those of
        the part between two times. For a scheduler::

            LambdaLR(optimizer, lambda step: factor(*recipe.position(step, total_steps)))

        Args:
            step: number of the step, from 0.
            total_steps: number of steps of the whole training.
        """
        return step, total_steps

    def works_sharded(self) -> bool:
        """Whether it also works where `fully_shard` has sharded the layers."""
        return False

    def stands_for(self, name: str, was: object, value: object) -> bool:
        """Whether a checkpoint's value of a field means this recipe's value."""
        return False

    # ---- what a user calls ---------------------------------------------------------------------

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        """Follow the optimizer's steps from now on.

        Args:
            model: the prepared model, also one under `fully_shard`, or the
                DistributedDataParallel around it. All processes must hold the same masks.
            optimizer: an optimizer that holds the parameters of the prepared layers, or a
                trainer's wrapper around it. If its `step` gets a closure, as trainers give it, the
                recipe acts after the closure has run.
            total_steps: number of steps of the whole training.

        Raises:
            RecipeError: the model has no layers for this recipe, a recipe is attached to them
                already, the optimizer misses parameters, or the schedule is longer than the
                training; nothing changes.
            StructureError: the processes that train the model together hold different masks.
        """
        check(Attached.attach, {"model": model})
        total_steps = as_integer(total_steps, f"{type(self).__name__}.attach got total_steps")
        optimizer = unwrapped(optimizer)
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        layers = dict(self.find(inner))
        self._check_sharded(layers)
        groups = groups_over(model, layers.values())
        self._check_free(layers)
        self._check_optimizer(layers, optimizer)
        if total_steps < (needed := self.minimum_steps()):
            raise RecipeError(
                f"{type(self).__name__}.attach got total_steps={total_steps}; its schedule needs "
                f"at least {needed} steps: train longer, or shorten the schedule"
            )
        self.layers, self.optimizer, self.total_steps = layers, optimizer, total_steps
        self.step, self.state, self._groups = 0, {}, groups
        self._holders = holders_of(layers)
        try:
            self._compare()
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
        """Remove the hooks from the optimizer; the layers stay as they are."""
        for handle in self._handles:
            handle.remove()
        for layer in self.layers.values():
            _ATTACHED.pop(layer, None)
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the recipe.

        That is its id, fields, steps and `state`, and the checksum of each mask: the first step
        after a resume raises `RecipeError` if the model's masks are of another step.
        """
        copies = {k: v.clone() if isinstance(v, Tensor) else v for k, v in self.state.items()}
        return identity(self) | {
            "total_steps": self.total_steps, "step": self.step, "state": copies,
            "masks": self._masks(),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume. Attach first, load this, then the model's state, then the optimizer's.

        A field that the checkpoint misses counts as its default; one that is unknown here is
        ignored.

        Raises:
            RecipeError: the state belongs to another recipe, other fields or another number of
                steps; nothing changes.
        """
        check(Attached.load_state_dict, locals())
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
        self._resumed = dict(state.get("masks") or {})  # older versions saved none
        self.state = {k: v.clone() if isinstance(v, Tensor) else v for k, v in saved.items()}

    # ---- what subclasses use -------------------------------------------------------------------

    def of_type(self, kind: type[Layer]) -> Iterator[tuple[int, str, Layer]]:
        """Yield the (index, name, layer) of each layer of a class."""
        for index, (name, layer) in enumerate(self.layers.items()):
            if isinstance(layer, kind):
                yield index, name, layer

    def average(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its mean over all processes that train the model together."""
        for group in self._groups:
            if (size := torch.distributed.get_world_size(group)) > 1:
                torch.distributed.all_reduce(tensor, group=group)
                tensor /= size
        return tensor

    # ---- inside --------------------------------------------------------------------------------

    def _masks(self) -> dict[str, int]:
        """Return the checksum of each mask that stays until it is changed, by name."""
        sums = zip(self._holders, mask_checksums(self._holders.values()), strict=True)
        return {name: found for name, found in sums if found is not None}

    def _check_resumed(self) -> None:
        """Raise RecipeError if the model has other masks than when the checkpoint was saved."""
        expected, self._resumed = self._resumed, {}
        for name, found in self._masks().items():
            if name in expected and expected[name] != found:
                raise RecipeError(
                    f"the mask of {name!r} is not the one that the checkpoint of the recipe was "
                    "saved with: after the recipe's state, load the model's state of the same step"
                )

    def _compare(self) -> None:
        """Compare the masks of all processes, and remember them."""
        for group in self._groups:
            compare(self._holders, group)
        self._checksums = mask_checksums(self._holders.values())

    def _check_sharded(self, layers: Mapping[str, nn.Module]) -> None:
        if self.works_sharded():
            return
        for name, layer in layers.items():
            for own, parameter in layer.named_parameters():
                if is_sharded(parameter):
                    raise RecipeError(
                        f"{type(self).__name__} reads whole weights between the steps, and "
                        f"{name}.{own} is sharded; use DistributedDataParallel, or a recipe that "
                        "works under fully_shard: Static, SET, RigL, or SLoPe without adapters"
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
                f"{' …' if len(missing) > 5 else ''}; build it after "
                "prepare(), from all parameters of the model"
            )

    def _forget(self) -> None:
        self.layers, self.optimizer, self._handles, self._groups = {}, None, [], []
        self._holders, self._checksums, self._resumed = {}, (), {}

    def _before(self, evaluation: int) -> None:
        if self._resumed:
            self._check_resumed()
        self.evaluation = evaluation
        self.before_step(self.step)

    def _after(self) -> None:
        self.after_step(self.step)
        if self.optimizer is not None:
            follow_density(self.optimizer, self.layers.values())
        if self._groups and mask_checksums(self._holders.values()) != self._checksums:
            self._compare()
        self.step += 1


__all__ = ["Attached"]
