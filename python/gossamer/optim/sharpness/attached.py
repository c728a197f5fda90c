"""Sharpness: the gradients of a step are taken at weights that are moved for the time of a pass.

A method is attached to an optimizer through torch's hooks, as a recipe is: schedulers, trainers and
checkpoints see the optimizer itself. `optimizer.step(closure)` then calls the closure once more for
each further pass. Without a closure the second pass is the caller's, inside `perturbed()`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.arguments import Positive, check
from gossamer.errors import RecipeError
from gossamer.optim.sharpness.repeated import Pass
from gossamer.optim.steps import first, unwrapped
from gossamer.weight.sharding import is_sharded

By = Mapping[nn.Parameter, Tensor]
"""A tensor for each parameter: gradients, or what is added to the weights. Others have none."""


def check_free(method: Any, model: nn.Module) -> None:
    """Raise RecipeError if a method is attached, or a parameter is sharded over processes."""
    who = type(method).__name__
    if method.optimizer is not None:
        raise RecipeError(f"{who} is attached already; detach() it, or make another one")
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            raise RecipeError(
                f"{who} moves whole weights, and {name} is sharded; use DistributedDataParallel, "
                "or train without it"
            )


class Sharpness(ABC):
    """The base class of the methods that compute gradients at moved weights.

    The weights are moved for the time of a pass only, and put back bit for bit, also if the pass
    raises. Recipes, masks and checkpoints see the weights that are not moved, whichever was
    attached first. A further pass draws the same random numbers (dropout) as the first and leaves
    the statistics of normalisation layers, and the masks that layers choose in their forward pass,
    as the first pass left them.

    A subclass says in `offsets` where the second pass is, and in `combine` what becomes of it.

    Args:
        each_process: under `DistributedDataParallel`, move the weights of each process by the
            gradient of its own batch; False moves all by the mean gradient.
    """

    def __init__(self, each_process: bool = False) -> None:
        check(Sharpness.__init__, locals())
        self.each_process = each_process
        self.model: nn.Module | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self._handles: list[Any] = []
        self._passed = False  # whether `perturbed` has given the gradients that are there

    @abstractmethod
    def offsets(self, gradients: By) -> By:
        """Return what is added to the weights for the second pass."""

    def combine(self, gradients: By, second: By) -> By:
        """Return the gradients for the optimizer, those at the weights and those beside."""
        return second

    def passes(self, gradients: By, at: Callable[[By], By]) -> By:
        """Return the gradients for the optimizer; for methods of more than two passes.

        Args:
            gradients: those at the weights.
            at: returns those at the weights plus what it is given, by another pass.
        """
        return self.combine(gradients, at(self.offsets(gradients)))

    def around(self) -> AbstractContextManager[Any]:
        """Return a context for the passes at moved weights; `offsets` has been called before."""
        return nullcontext()

    def is_off(self) -> bool:
        """Whether the gradients at the weights are what the optimizer gets."""
        return False

    # ---- what a user calls ---------------------------------------------------------------------

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Follow the optimizer's steps from now on.

        Args:
            model: the model, or the DistributedDataParallel around it.
            optimizer: an optimizer of its parameters, or a trainer's wrapper around it.

        Raises:
            RecipeError: it is attached already, or a parameter is sharded over processes; nothing
                changes.
        """
        check(Sharpness.attach, {"model": model})
        check_free(self, model)
        self.model, self.optimizer = model, unwrapped(optimizer)
        self._handles = self.follow(self.optimizer)

    def detach(self) -> None:
        """Remove the hooks; the optimizer steps as before."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.model, self.optimizer, self._passed = [], None, None, False

    @contextmanager
    def perturbed(self, loss_scale: Positive = 1.0) -> Iterator[None]:
        """Move the weights by the gradients that are there, for a second pass by hand.

        For loops whose `optimizer.step` gets no closure, as under `torch.amp.GradScaler`::

            scaler.scale(loss(model(x), y)).backward()
            with sam.perturbed(loss_scale=scaler.get_scale()):
                scaler.scale(loss(model(x), y)).backward()
            scaler.step(optimizer)

        The gradients are taken away at the beginning; those of the block are there afterwards. If
        a gradient is not finite, the weights are not moved. To have the same dropout in both
        passes, call `torch.manual_seed` before each.

        Args:
            loss_scale: by which the loss was multiplied, if it was. Methods that divide by the
                norm of the gradient do not need it.

        Raises:
            RecipeError: it is not attached, or needs more than one further pass.
        """
        check(Sharpness.perturbed, {"loss_scale": loss_scale})
        model, _ = self._attached("perturbed")
        gradients = self._take()
        if self.is_off():
            with Pass(model, {}):
                yield
        else:
            along = gradients
            if loss_scale != 1.0:
                along = {p: g / loss_scale for p, g in gradients.items()}
            with Pass(model, self.offsets(along)), self.around():
                yield
            self._give(self.combine(gradients, self._take()))
        self._passed = True

    # ---- what subclasses use -------------------------------------------------------------------

    def follow(self, optimizer: torch.optim.Optimizer) -> list[Any]:
        """Hang on to the optimizer's steps; return handles whose `remove()` ends it."""
        # Before all others: what they add to a closure then runs once, behind all passes.
        return [first(optimizer, optimizer.register_step_pre_hook(self._enter))]

    def named(self) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
        """Yield the (name, module, parameter) of each parameter of the model, once."""
        model = self.model or nn.Module()
        seen: set[int] = set()
        for path, module in model.named_modules():
            for own, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{path}.{own}" if path else own, module, parameter

    # ---- inside --------------------------------------------------------------------------------

    def _enter(
        self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        own, *given = args  # torch passes the optimizer itself first
        if any(callable(value) for value in (*given, *kwargs.values())):
            wrapped = {name: self._passes(value) for name, value in kwargs.items()}
            return (own, *map(self._passes, given)), wrapped
        if not self._passed and not self.is_off():
            raise RecipeError(
                f"{type(self).__name__} needs another pass at other weights: call "
                "optimizer.step(closure), or compute the gradients once more inside "
                "`with ….perturbed():` before optimizer.step()"
            )
        self._passed = False
        return None

    def _passes(self, closure: Any) -> Any:
        """Return a closure that computes the combined gradients; other values as they are."""
        if not callable(closure) or self.is_off():
            return closure

        @wraps(closure, updated=())
        def evaluate(*args: Any, **kwargs: Any) -> Any:
            model, _ = self._attached("step")
            start = Pass.random_state()
            with self._apart(model):
                loss = closure(*args, **kwargs)

            def at(offsets: By) -> By:
                with Pass(model, offsets, start), self.around(), torch.enable_grad():
                    closure(*args, **kwargs)
                return self._take()

            self._give(self.passes(self._take(), at))
            return loss

        return evaluate

    def _attached(self, what: str) -> tuple[nn.Module, torch.optim.Optimizer]:
        if self.model is None or self.optimizer is None:
            raise RecipeError(f"{type(self).__name__}.{what} was called before attach")
        return self.model, self.optimizer

    def _apart(self, model: nn.Module) -> AbstractContextManager[Any]:
        if self.each_process and isinstance(model, nn.parallel.DistributedDataParallel):
            return model.no_sync()
        return nullcontext()

    def _take(self) -> dict[nn.Parameter, Tensor]:
        """Return the gradients of the optimizer's parameters, and take them away."""
        model, optimizer = self._attached("step")
        # Gradients that are views of DistributedDataParallel's buckets do not outlive a pass.
        is_view = getattr(model, "gradient_as_bucket_view", False)
        found = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    found[parameter] = parameter.grad.clone() if is_view else parameter.grad
                    parameter.grad = None
        return found

    @staticmethod
    def _give(gradients: By) -> None:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
