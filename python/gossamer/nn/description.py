"""What a model of sparse layers is made of, as JSON: with its state dict it builds it again."""

from __future__ import annotations

from typing import Any

from torch import nn

from gossamer.nn.layers.rebuilding import describe

FORMAT = "gossamer-model-1"


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Return the description of a model's layers.

    Args:
        model: any module.

    Returns:
        `format`; `layers`, the description of each layer of Gossamer by its name, "" for the model
        itself; `tied`, the first name by each further name of a shared module or parameter.

    Example:
        >>> import gossamer
        >>> describe_model(gossamer.SparseLinear(8, 4, pattern="2:4"))["layers"][""]["kind"]
        'SparseLinear'
    """
    layers: dict[str, Any] = {}
    tied: dict[str, str] = {}
    names: dict[int, str] = {}  # the first name of a module or parameter

    def visit(module: nn.Module, name: str, described: bool) -> None:
        prefix = f"{name}." if name else ""
        if not described and (found := describe(module)) is not None:
            layers[name] = found
            described = True
        for own, parameter in module._parameters.items():
            if parameter is not None:
                first = names.setdefault(id(parameter), prefix + own)
                if first != prefix + own:
                    tied[prefix + own] = first
        for own, child in module._modules.items():
            if child is not None:
                first = names.setdefault(id(child), prefix + own)
                if first == prefix + own:
                    visit(child, first, described)
                else:
                    tied[prefix + own] = first

    visit(model, "", False)
    return {"format": FORMAT, "layers": layers, "tied": tied}


__all__ = ["FORMAT", "describe_model"]
