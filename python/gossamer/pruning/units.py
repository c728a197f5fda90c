"""Units: heads of an attention module, or hidden neurons of experts, that one module holds alone.

No tensor outside the module shows them, so each is kept or removed by itself.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from gossamer.pruning.attention import FusedHeads, with_heads
from gossamer.pruning.experts import cut_experts, parts
from gossamer.pruning.multihead import fewer_heads


class Unit(Protocol):
    """Units of one kind in one module.

    Attributes:
        name: name of the module.
        count: number of units.
        parameters: number of parameter entries per unit.
        products: number of multiplications with weights per unit, in the call on the example.
        multiple: the number of units is a multiple of it; 0 if it does not matter.
    """

    name: str
    count: int
    parameters: int
    products: int
    multiple: int

    def slices(self, module: nn.Module) -> list[Tensor]:
        """Return views of the parameters that make the units' values, each [count, ...].

        A unit whose slices are zero adds nothing to the module's result.
        """

    def cut(self, model: nn.Module, keep: Tensor) -> None:
        """Keep some units, bool [count], of the module in a model."""


class _Named:
    """What all units have."""

    def __init__(self, name: str, count: int, entries: int, biases: int, products: int) -> None:
        self.name, self.count, self.products = name, count, products
        self.parameters = entries + biases
        self.multiple = 0


class FusedUnits(_Named):
    """Heads of an attention like `HeadAttention`."""

    def __init__(self, name: str, module: nn.Module, known: FusedHeads, uses: int) -> None:
        qkv: nn.Linear = module.qkv  # type: ignore[assignment]
        entries = 4 * qkv.weight.numel() // (3 * known.heads)
        biases = 0 if qkv.bias is None else len(qkv.bias) // known.heads
        super().__init__(name, known.heads, entries, biases, entries * uses)
        self.known = known

    def slices(self, module: nn.Module) -> list[Tensor]:
        """Return rows and biases of query, key and value, by head."""
        qkv: nn.Linear = module.qkv  # type: ignore[assignment]
        return _by_head(qkv.weight, qkv.bias, self.count)

    def cut(self, model: nn.Module, keep: Tensor) -> None:
        """Replace the attention by one with fewer heads."""
        module = model.get_submodule(self.name)
        model.set_submodule(self.name, with_heads(module, self.known, keep))


class MultiheadUnits(_Named):
    """Heads of an `nn.MultiheadAttention`."""

    def __init__(self, name: str, module: nn.MultiheadAttention, uses: int) -> None:
        heads, bias = module.num_heads, module.in_proj_bias
        entries = 4 * module.embed_dim**2 // heads
        biases = 0 if bias is None else len(bias) // heads
        super().__init__(name, heads, entries, biases, entries * uses)

    def slices(self, module: nn.Module) -> list[Tensor]:
        """Return rows and biases of query, key and value, by head."""
        return _by_head(module.in_proj_weight, module.in_proj_bias, self.count)  # type: ignore[arg-type]

    def cut(self, model: nn.Module, keep: Tensor) -> None:
        """Replace the attention by one with fewer heads."""
        module: nn.MultiheadAttention = model.get_submodule(self.name)  # type: ignore[assignment]
        model.set_submodule(self.name, fewer_heads(module, keep))


class ExpertUnits(_Named):
    """Hidden neurons of experts that are stored together."""

    def __init__(self, name: str, module: nn.Module, uses: int) -> None:
        up, down = parts(module)
        hidden = down.shape[2]
        each = 3 * down.shape[1]  # entries in one expert
        super().__init__(name, hidden, each * len(up), 0, each * uses)
        # torch's grouped products take rows of a multiple of 16 bytes.
        self.multiple = max(16 // up.element_size(), 1)

    def slices(self, module: nn.Module) -> list[Tensor]:
        """Return rows of the gate and of what it multiplies, by neuron."""
        up, _ = parts(module)
        return [up.permute(2, 0, 1, 3)]

    def cut(self, model: nn.Module, keep: Tensor) -> None:
        """Remove the neurons from all experts."""
        cut_experts(model.get_submodule(self.name), keep)


def _by_head(weight: Tensor, bias: Tensor | None, heads: int) -> list[Tensor]:
    """Views [heads, ...] of a weight whose rows are query, key and value, each by head."""
    found = []
    for tensor in (weight, bias):
        if tensor is not None:
            size = len(tensor) // (3 * heads)
            found.append(tensor.detach().view(3, heads, size, *tensor.shape[1:]).transpose(0, 1))
    return found


def energies(slices: list[Tensor]) -> Tensor:
    """Return the sum of squares per unit, float64 [count]."""
    return torch.stack([s.double().flatten(1).square().sum(1).cpu() for s in slices]).sum(0)
