"""The move of what belongs to the entries of a weight: values, gradient and optimizer state.

An entry that both structures keep keeps its numbers; those of a new entry are 0. Everything follows
the coordinates, and nothing is as large as the dense weight. What is sharded over processes is
gathered, moved alike by each of them, and cut again. State in 8 bits is read, moved and quantised.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.backend import Structure
from gossamer.backend.arrays import FLOATS
from gossamer.errors import DTypeError
from gossamer.weight.quantized_state import BlockState, quantized_state
from gossamer.weight.sharding import is_sharded, put, whole


class Moving:
    """A move of the values of a weight to another structure; nothing changes before `apply`.

    Args:
        values: [nnz of old], the Parameter.
        old: its structure.
        new: the structure after the move.
        optimizer: the optimizer of `values`, or None.

    Raises:
        DTypeError: the values are a part of all, or sharded while their number changes; or a state
            tensor has a dtype that cannot move.
        ShapeError: the structures differ in rows, columns, vector or width of blocks.
    """

    def __init__(
        self,
        values: nn.Parameter,
        old: Structure,
        new: Structure,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        self._old, self._new, self._optimizer = old, new, optimizer
        _check_whole(values, old, new.nnz != old.nnz)
        self._parameter = values
        self._kept = {} if optimizer is None else optimizer.state.get(values, {})
        self._quantized = quantized_state(self._kept, values)
        state = _elementwise(self._kept, values, self._quantized)
        if new.nnz != old.nnz:
            _check_resizable(self._quantized)
        grads = [] if values.grad is None else [values.grad]
        self._names = list(state)
        self._tensors = [values, *state.values(), *grads]
        # Copies of those that are not contiguous or sharded.
        self._sources = [whole(tensor).contiguous() for tensor in self._tensors]
        self._sources += [block.read() for block in self._quantized.values()]
        # In place where the number of entries stays: no other memory is needed then.
        self._fresh = None if new.nnz == old.nnz else self._moved(self._sources)

    def values(self) -> Tensor:
        """Return the moved values, [nnz of new]."""
        return self._fresh[0] if self._fresh else self._moved(self._sources[:1])[0]

    def apply(self) -> None:
        """Move the values, their gradient and the state; a pending backward pass will fail."""
        if self._fresh is None:
            backend.move(self._old, self._new, self._sources)
        forget_joint_state(self._optimizer)
        parameter = self._parameter
        if self._fresh is None:
            moved, read = self._parted(self._sources)
            for tensor, source in zip(self._tensors, moved, strict=True):
                put(tensor, source)
            for block, numbers in zip(self._quantized.values(), read, strict=True):
                block.write(numbers)
            torch.autograd.graph.increment_version(self._tensors)
            return
        torch.autograd.graph.increment_version(parameter)
        has_grad = parameter.grad is not None
        parameter.grad = None
        # By way of another dtype: a graph that is still alive, as that of the last loss, holds the
        # node that adds up the gradient, and torch makes a new one only then.
        other = torch.float64 if parameter.dtype == torch.float32 else torch.float32
        parameter.data = parameter.new_empty(0, dtype=other)
        moved, read = self._parted(self._fresh)
        parameter.data = moved[0]
        if has_grad:
            parameter.grad = moved[-1]
        self._kept.update(zip(self._names, moved[1:], strict=False))
        for block, numbers in zip(self._quantized.values(), read, strict=True):
            block.replace(self._kept, numbers)

    def _parted(self, sources: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return what belongs to tensors, and what is quantised."""
        count = len(self._tensors)
        return sources[:count], sources[count:]

    def _moved(self, sources: list[Tensor]) -> list[Tensor]:
        out = [source.new_empty(self._new.nnz) for source in sources]
        backend.move(self._old, self._new, sources, out)
        return out


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
    if is_sharded(values):
        placements = values.placements  # type: ignore[attr-defined]
        if resized or any(type(p).__name__ not in ("Shard", "Replicate") for p in placements):
            kind = f"a DTensor ({placements}), whose size is fixed"
    elif values.numel() != structure.nnz:
        kind = f"a part of {values.numel()} of the {structure.nnz} values"
    elif resized and getattr(values, "_fsdp_flattened", False):
        kind = "a view of the flat parameter of FSDP, whose size is fixed"
    if kind:
        raise DTypeError(
            f"set_mask: values is {kind}; such a mask moves where one process holds all values: "
            "change the mask before the model is sharded, or keep the number of entries"
        )


def _check_resizable(quantized: dict[str, BlockState]) -> None:
    """Raise DTypeError for quantised state whose class fixes its size."""
    for name, block in quantized.items():
        if len(block.names) == 1:
            raise DTypeError(
                f"set_mask: the optimizer's {name} is in 8 bits, in a tensor of its own class, "
                "whose size is fixed: keep the number of entries, or use an optimizer that keeps "
                "float32 or bfloat16"
            )


def _elementwise(
    state: dict[str, object], parameter: nn.Parameter, quantized: dict[str, BlockState]
) -> dict[str, Tensor]:
    """Return the state tensors with one number per value; DTypeError for one that cannot move."""
    found = {}
    for name, tensor in state.items():
        if name in quantized:
            continue
        if isinstance(tensor, Tensor) and tensor.shape == parameter.shape and tensor.dim():
            if tensor.dtype not in FLOATS:
                raise DTypeError(
                    f"the optimizer's {name} is {tensor.dtype}; only float32, float64 and "
                    "bfloat16 state can move with a mask: use an optimizer that keeps those"
                )
            found[name] = tensor
    return found
