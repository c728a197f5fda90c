"""What `sparsify_activations` replaced, without parameters: `densify` restores it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gossamer.activations import Weights
from gossamer.errors import PatternError
from gossamer.nn.layers.base import MaskedLayer


class Absorbed(nn.Identity):
    """Stands in the place of a layer or function whose work an `ActivationSparseFFN` does.

    Args:
        original: what `densify` puts back.
    """

    def __init__(self, original: Callable[..., Any]) -> None:
        super().__init__()
        self._original = (original,)  # in a tuple, so that it is not a submodule

    @property
    def original(self) -> Callable[..., Any]:
        """What `densify` puts back."""
        return self._original[0]

    def extra_repr(self) -> str:
        """Return the line that `print(model)` shows."""
        original = self.original
        return type(original).__name__ if isinstance(original, nn.Module) else original.__name__


@dataclass
class Origin:
    """What an `ActivationSparseFFN` replaced, without parameters.

    Args:
        module: what `densify` puts in its place.
        linears: the linear layers of gate, up and down, in the module or beside it; of those with
            sparse weights the layers themselves.
        turned: whether each of them stores its weight transposed.
    """

    module: nn.Module
    linears: tuple[nn.Module, nn.Module | None, nn.Module]
    turned: tuple[bool, ...]

    @property
    def absorbed(self) -> nn.Module | None:
        """The last layer if it stands in another place, which an `Absorbed` keeps."""
        return self.linears[2] if self.module is self.linears[0] else None

    def restore(self, weights: Weights, transposed: dict[int, nn.Parameter]) -> nn.Module:
        """Put parameters into the linear layers and return the module.

        Args:
            weights: the parameters of the layer.
            transposed: parameters that were transposed before, by the id of their original; what
                was one parameter stays one.
        """
        entries = zip(self.linears, self.turned, weights[:3], weights[3:], strict=True)
        for linear, turned, weight, bias in entries:
            if linear is not None and weight is not None and not isinstance(linear, MaskedLayer):
                linear.weight = transpose(weight, transposed) if turned else weight
                linear.bias = bias  # type: ignore[assignment]
        return self.module


def transpose(weight: Tensor, transposed: dict[int, nn.Parameter]) -> nn.Parameter:
    """Return the transpose of a parameter, a new one, or that of an earlier call."""
    if id(weight) not in transposed:
        turned = weight.detach().t().contiguous()
        transposed[id(weight)] = nn.Parameter(turned, weight.requires_grad)
    return transposed[id(weight)]


def twin_of(module: nn.Module) -> nn.Module:
    """Return a copy of a module that holds the same parameters, buffers and modules.

    `copy.copy` would let the class rebuild it, which torch's decoder layer does wrongly.
    """
    twin = object.__new__(type(module))
    twin.__dict__.update(vars(module))
    for kind in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[kind] = dict(vars(module)[kind])
    return twin


def shell_of(module: nn.Module, shells: dict[int, nn.Module]) -> nn.Module:
    """Return a copy of a module and all modules in it, without parameters and hooks.

    Args:
        module: the module; it is not changed.
        shells: gets each copy, by the id of its original.
    """
    if id(module) not in shells:
        shell = shells[id(module)] = twin_of(module)
        for name, value in vars(module).items():
            if "_hooks" in name and isinstance(value, dict):
                shell.__dict__[name] = type(value)()
        shell._parameters = dict.fromkeys(module._parameters)
        shell._modules = {
            name: child if child is None else shell_of(child, shells)
            for name, child in module._modules.items()
        }
    return shells[id(module)]


def check_absorbed(model: nn.Module, name: str, origin: Origin | None) -> None:
    """Check that a model has the places of a network that stands in several.

    Raises:
        PatternError: the place of its last layer is not in the model.
    """
    last = None if origin is None else origin.absorbed
    places = (m.original for m in model.modules() if isinstance(m, Absorbed))
    if last is not None and not any(original is last for original in places):
        raise PatternError(
            f"densify got a model with the network {name!r} but without the place of its last "
            "layer; give it the module that holds both"
        )


def put_back_absorbed(model: nn.Module) -> None:
    """Put the layers and functions back that `Absorbed` stands for."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, Absorbed):
                parent._modules[name] = child.original  # type: ignore[assignment]
        for name, value in list(vars(parent).items()):
            if isinstance(value, Absorbed):
                delattr(parent, name)
                setattr(parent, name, value.original)


__all__ = [
    "Absorbed",
    "Origin",
    "check_absorbed",
    "put_back_absorbed",
    "shell_of",
    "transpose",
    "twin_of",
]
