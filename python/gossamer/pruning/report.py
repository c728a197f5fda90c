"""Report of `shrink`: sizes, parameters and operations per layer, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.nn.layers.linear import is_conv1d
from gossamer.pruning.experts import is_experts
from gossamer.pruning.multihead import FewerHeads
from gossamer.pruning.weights import TRANSPOSED
from gossamer.tables import text_table


@dataclass(frozen=True)
class LayerChange:
    """One layer with parameters, before and after.

    Args:
        name: name of the module.
        kind: class of the module before.
        before: shape of the first parameter before, such as [outputs, inputs].
        after: shape of the first parameter after.
        parameters: number of parameter entries, before and after.
        flops: operations on the example input, before and after: two per multiplication of a
            Linear or a convolution; other modules count 0.
    """

    name: str
    kind: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    parameters: tuple[int, int]
    flops: tuple[int, int]


@dataclass(frozen=True)
class ShrinkReport:
    """The layers of a shrunk model; `print` shows a table.

    Args:
        layers: one entry per module with parameters, in the model's order.
        notes: modules that kept channels, with the reason.
        title: heading of the table.
    """

    layers: tuple[LayerChange, ...]
    notes: tuple[str, ...]
    title: str = "shrink"

    @property
    def parameters(self) -> tuple[int, int]:
        """Number of parameter entries, before and after; shared ones count once per owner."""
        return _sums([layer.parameters for layer in self.layers])

    @property
    def flops(self) -> tuple[int, int]:
        """Operations on the example input, before and after."""
        return _sums([layer.flops for layer in self.layers])

    def __str__(self) -> str:
        rows = [
            (
                layer.name,
                "x".join(map(str, layer.before)),
                "x".join(map(str, layer.after)),
                "{:,} -> {:,}".format(*layer.parameters),
                "{:,} -> {:,}".format(*layer.flops),
            )
            for layer in self.layers
        ]
        totals = ("{:,} -> {:,}".format(*pair) for pair in (self.parameters, self.flops))
        headings = ("layer", "before", "after", "parameters", "flops")
        notes = [f"kept: {note}" for note in self.notes]
        return text_table(self.title, headings, rows, ("sum", "", "", *totals), notes=notes) + "\n"


def compare(
    before: nn.Module,
    after: nn.Module,
    inputs: Sequence[Any],
    notes: Sequence[str],
    title: str = "shrink",
) -> ShrinkReport:
    """Compare a model with its smaller version; both are called once.

    Args:
        before: the model.
        after: the smaller model, with the same module names.
        inputs: positional arguments of the forward pass.
        notes: modules that kept channels, with the reason.
        title: heading of the report.

    Returns:
        The report.
    """
    old, new = flops(before, inputs), flops(after, inputs)
    layers = []
    for name, module in before.named_modules():
        own = list(module.parameters(recurse=False))
        if not own:
            continue
        then = list(after.get_submodule(name).parameters(recurse=False))
        layers.append(
            LayerChange(
                name,
                type(module).__name__,
                tuple(own[0].shape),
                tuple(then[0].shape),
                (sum(p.numel() for p in own), sum(p.numel() for p in then)),
                (old.get(name, 0), new.get(name, 0)),
            )
        )
    return ShrinkReport(tuple(layers), tuple(notes), title)


def flops(model: nn.Module, inputs: Sequence[Any]) -> dict[str, int]:
    """Count the operations with weights in one call of a model, two per multiplication.

    Counted are Linear layers and transformers' Conv1D, convolutions, the projections of
    `nn.MultiheadAttention`, and experts that are stored together.

    Args:
        model: any module.
        inputs: positional arguments of the forward pass.

    Returns:
        Operations by module name.

    Example:
        >>> flops(nn.Linear(3, 2), [torch.ones(5, 3)])
        {'': 60}
    """
    counts: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():

        def count(module: nn.Module, given: Any, out: Any, name: str = name) -> None:
            if found := _products(module, given, out):
                counts[name] = counts.get(name, 0) + 2 * found

        handles.append(module.register_forward_hook(count))
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def cost_of(model: nn.Module, inputs: Sequence[Any], budget: str) -> int:
    """Return the operations of a call, or the bytes of the parameters; shared ones count once."""
    if budget == "flops":
        return sum(flops(model, inputs).values())
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _products(module: nn.Module, given: Any, out: Any) -> int:
    """Return the number of multiplications with weights in one call of a module."""
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return int(out.numel() * module.weight[0].numel())
    if isinstance(module, TRANSPOSED):
        return int(given[0].numel() * module.weight[0].numel())
    if is_conv1d(module):
        return int(out.numel() * module.weight.shape[0])  # type: ignore[index]
    if isinstance(module, nn.MultiheadAttention | FewerHeads) and given:
        places = given[0].numel() // given[0].shape[-1]
        weights = module.in_proj_weight.numel()
        if isinstance(module, nn.MultiheadAttention):  # it does not call its out_proj
            weights += module.out_proj.weight.numel()
        return int(places * weights)
    if is_experts(module) and given:
        chosen = given[1].numel() if len(given) > 1 else given[0].numel() // given[0].shape[-1]
        up: Tensor = module.gate_up_proj  # type: ignore[assignment]
        return int(chosen * (up[0].numel() * 3 // 2))
    return 0


def _sums(pairs: list[tuple[int, int]]) -> tuple[int, int]:
    return sum(before for before, _ in pairs), sum(after for _, after in pairs)
