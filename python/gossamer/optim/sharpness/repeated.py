"""A further pass at moved weights, which leaves nothing behind but its gradients."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import RecipeError
from gossamer.nn import MaskedLayer
from gossamer.weight import SparseWeight

RandomState = tuple[Tensor, list[Tensor]]
# The attribute of layers that choose their mask in every forward pass.
RESELECTS = "reselect_each_forward"


class Pass:
    """A context in which the weights are moved.

    Put back at the end, bit for bit: the weights; the buffers of normalisation and other dense
    layers (running statistics); whether layers choose their mask by the weights. A `state_dict`
    taken meanwhile raises RecipeError.

    Args:
        model: the model.
        offsets: what is added to a parameter.
        start: the state of the random generators at the begin of the first pass, which this one
            repeats; None lets them run on.
    """

    def __init__(
        self,
        model: nn.Module,
        offsets: Mapping[nn.Parameter, Tensor],
        start: RandomState | None = None,
    ) -> None:
        self.model, self.offsets, self.start = model, dict(offsets), start
        self._stack = ExitStack()

    @staticmethod
    def random_state() -> RandomState:
        """Return the state of torch's generators, on the CPU and on GPUs that are in use."""
        in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        devices = torch.cuda.get_rng_state_all() if in_use else []
        return torch.get_rng_state(), devices

    def __enter__(self) -> None:
        with ExitStack() as stack:
            self._enter(stack)
            self._stack = stack.pop_all()

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _enter(self, stack: ExitStack) -> None:
        if self.start is not None:
            torch.set_rng_state(self.start[0])
            if self.start[1]:
                torch.cuda.set_rng_state_all(self.start[1])
        for module in self.model.modules():
            if isinstance(module, MaskedLayer):
                if getattr(module, RESELECTS, False):
                    setattr(module, RESELECTS, False)
                    stack.callback(setattr, module, RESELECTS, True)
            elif not isinstance(module, SparseWeight) and module.training:
                for buffer in module.buffers(recurse=False):
                    stack.callback(_put_back, buffer, buffer.clone())
        handle = self.model.register_state_dict_pre_hook(_refuse)  # type: ignore[no-untyped-call]
        stack.callback(handle.remove)
        if self.offsets:
            parameters: list[Any] = list(self.offsets)
            with torch.no_grad():
                before = [p.detach().clone() for p in parameters]
                stack.callback(_copy, parameters, before)
                torch._foreach_add_(parameters, [*self.offsets.values()])


@torch.no_grad()
def _copy(to: list[Any], source: list[Tensor]) -> None:
    torch._foreach_copy_(to, source)


@torch.no_grad()
def _put_back(buffer: Tensor, before: Tensor) -> None:
    if not torch.equal(buffer, before):
        buffer.copy_(before)


def _refuse(*_: Any) -> None:
    raise RecipeError(
        "state_dict was called while a sharpness method has moved the weights; call it between "
        "the steps"
    )


__all__ = ["Pass", "RandomState"]
