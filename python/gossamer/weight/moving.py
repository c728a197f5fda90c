"""The move of what belongs to the entries of a weight: values, gradient and optimizer state.

An entry that both structures keep keeps its numbers; those of a new entry are 0. Everything follows
the coordinates, and nothing is as large as the dense weight.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.backend import Structure
from gossamer.backend.arrays import FLOATS
from gossamer.errors import DTypeError


class Moving:
    """A move of the values of a weight to another structure; nothing changes before `apply`.

    Args:
        values: [nnz of old], the Parameter.
        old: its structure.
        new: the structure after the move.
        optimizer: the optimizer of `values`, or None.

    Attributes:
        values: [nnz of new], the moved values.

    Raises:
        DTypeError: the values are sharded, or a state tensor has a dtype that cannot move.
        ShapeError: the structures differ in rows, columns, vector or width of blocks.
    """

    def __init__(
        self,
        values: nn.Parameter,
        old: Structure,
        new: Structure,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        self._resized = new.nnz != old.nnz
        _check_whole(values, old, self._resized)
        self._parameter, self._vector = values, old.layout.vector
        self._optimizer = optimizer
        self._kept = {} if optimizer is None else optimizer.state.get(values, {})
        self._state = _elementwise(self._kept, values)
        self._origins = backend.match(old, new)
        self.values = self._moved(values)
        # What may lack memory happens here. Numbers of one dtype take turns in a scratch tensor,
        # except where they become the new tensors.
        others = [t for t in (values.grad, *self._state.values()) if t is not None]
        self._scratch = {self.values.dtype: self.values}
        if not self._resized:
            for tensor in others:
                if tensor.dtype not in self._scratch:
                    self._scratch[tensor.dtype] = tensor.new_empty(new.nnz)
        else:
            self._fresh = {name: self._moved(t) for name, t in self._state.items()}
            self._grad = None if values.grad is None else self._moved(values.grad)

    def apply(self) -> None:
        """Move the values, their gradient and the state; a pending backward pass will fail."""
        forget_joint_state(self._optimizer)
        parameter = self._parameter
        if not self._resized:
            # copy_ raises the version counters.
            parameter.copy_(self.values)
            for tensor in (parameter.grad, *self._state.values()):
                if tensor is not None:
                    tensor.copy_(self._moved(tensor, self._scratch[tensor.dtype]))
            return
        torch.autograd.graph.increment_version(parameter)
        parameter.grad = None
        # By way of another dtype: a graph that is still alive, as that of the last loss, holds the
        # node that adds up the gradient, and torch makes a new one only then.
        other = torch.float64 if parameter.dtype == torch.float32 else torch.float32
        parameter.data = parameter.new_empty(0, dtype=other)
        parameter.data = self.values
        parameter.grad = self._grad
        self._kept.update(self._fresh)

    def _moved(self, tensor: Tensor, out: Tensor | None = None) -> Tensor:
        source = tensor.detach().contiguous()
        if out is None:
            out = source.new_empty(self._origins.numel() * self._vector)
        return backend.move(self._origins, self._vector, source, out)


def forget_joint_state(optimizer: torch.optim.Optimizer | None) -> None:
    """Clear the state that an optimizer keeps for all parameters together.

    L-BFGS has vectors over all entries of all parameters. What they hold for entries that moved or
    were dropped would come back in its next direction, so its memory begins anew.

    Args:
        optimizer: any optimizer, or None; all but L-BFGS keep their state.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.state.clear()
        optimizer._numel_cache = None


def _check_whole(values: nn.Parameter, structure: Structure, resized: bool) -> None:
    """Raise DTypeError if the Parameter does not own all values."""
    kind = ""
    if hasattr(values, "placements"):
        kind = f"a DTensor ({values.placements})"
    elif values.numel() != structure.nnz:
        kind = f"a part of {values.numel()} of the {structure.nnz} values"
    elif resized and getattr(values, "_fsdp_flattened", False):
        kind = "a view of the flat parameter of FSDP, whose size is fixed"
    if kind:
        raise DTypeError(
            f"set_mask: values is {kind}; a mask moves where one process holds all values: change "
            "the mask before the model is sharded"
        )


def _elementwise(state: dict[str, object], parameter: nn.Parameter) -> dict[str, Tensor]:
    """Return the state tensors with one number per value; DTypeError for one that cannot move."""
    found = {}
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.shape == parameter.shape and tensor.dim():
            if tensor.dtype not in FLOATS:
                raise DTypeError(
                    f"the optimizer's {name} is {tensor.dtype}; only float32, float64 and "
                    "bfloat16 state can move with a mask: use an optimizer that keeps those"
                )
            found[name] = tensor
    return found
