"""The weight of a layer with its outputs first: Linear, Conv1D, and convolutions.

transformers' Conv1D and transposed convolutions store the inputs first.
"""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor, nn

from gossamer.nn.layers.linear import is_conv1d

Conv: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def inputs_first(module: nn.Module) -> bool:
    """Return whether the layer stores its weight as [inputs, outputs, ...]."""
    return type(module) in TRANSPOSED or is_conv1d(module)


def is_weighted(module: nn.Module) -> bool:
    """Return whether a module is a layer or an attention whose weight multiplies features."""
    kinds = (nn.Linear, *CONVS, *TRANSPOSED, nn.MultiheadAttention)
    return isinstance(module, kinds) or is_conv1d(module)


def oriented(module: nn.Module) -> Tensor:
    """Return a view of the weight, [outputs, inputs, ...]."""
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    return weight.transpose(0, 1) if inputs_first(module) else weight


def replace_weight(module: nn.Module, weight: Tensor) -> None:
    """Give a layer a new weight [outputs, inputs, ...], and update the sizes that it stores."""
    before: nn.Parameter = module.weight  # type: ignore[assignment]
    stored = weight.transpose(0, 1) if inputs_first(module) else weight
    module.weight = nn.Parameter(stored.contiguous(), before.requires_grad)


def resize(module: nn.Module, inputs: int, outputs: int, groups: int = 1) -> None:
    """Update the sizes that a module stores about itself."""
    sizes = {
        "in_features": inputs,
        "out_features": outputs,
        "in_channels": inputs,
        "out_channels": outputs,
        "num_features": outputs,
        "num_parameters": outputs,
        "nx": inputs,
        "nf": outputs,
        "groups": groups,
    }
    for name, size in sizes.items():
        if hasattr(module, name):
            setattr(module, name, size)
