"""Report of `shrink`: sizes, parameters and operations per layer, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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
    """

    layers: tuple[LayerChange, ...]
    notes: tuple[str, ...]

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
        return text_table("shrink", headings, rows, ("sum", "", "", *totals), notes=notes) + "\n"


def compare(
    before: nn.Module, after: nn.Module, inputs: Sequence[Any], notes: Sequence[str]
) -> ShrinkReport:
    """Compare a model with its smaller version; both are called once.

    Args:
        before: the model.
        after: the smaller model, with the same module names.
        inputs: positional arguments of the forward pass.
        notes: modules that kept channels, with the reason.

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
    return ShrinkReport(tuple(layers), tuple(notes))


def flops(model: nn.Module, inputs: Sequence[Any]) -> dict[str, int]:
    """Count the operations of each Linear and convolution in one call of a model.

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
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):

            def count(module: nn.Module, _: Any, out: Tensor, name: str = name) -> None:
                weight: Tensor = module.weight  # type: ignore[assignment]
                counts[name] = counts.get(name, 0) + 2 * out.numel() * weight[0].numel()

            handles.append(module.register_forward_hook(count))
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def _sums(pairs: list[tuple[int, int]]) -> tuple[int, int]:
    return sum(before for before, _ in pairs), sum(after for _, after in pairs)
