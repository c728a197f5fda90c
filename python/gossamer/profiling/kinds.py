"""What is timed: a linear layer, a convolution, or a module that multiplies by its own matrices.

Each says what its time depends on, and makes itself anew, dense or under a pattern.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.nn.layers.convolution import KINDS
from gossamer.nn.layers.linear import SparseLinear
from gossamer.nn.layers.parameter import SparseParameter
from gossamer.nn.surgery import densify, sparsify
from gossamer.patterns import Pattern

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """What the time of one call depends on.

    Args:
        out_features: rows of the weight.
        in_features: columns of the weight.
        rows: rows of the input, all leading dimensions together; pixels of the output.
        dtype: of the weight.
        autocast: the dtype of torch's autocast during the call, None without it.
        pattern: of the layer as it stands, None when dense.
        fixed: why the layer cannot be swapped, "" where it can.
    """

    out_features: int
    in_features: int
    rows: int
    dtype: torch.dtype
    autocast: torch.dtype | None
    pattern: Pattern | None
    fixed: str

    @property
    def what(self) -> str:
        """The name of the kind of layer."""
        raise NotImplementedError

    def make(self, pattern: Pattern | None) -> tuple[nn.Module, Arguments]:
        """Return a layer, dense or under a pattern, and arguments as those of the call.

        Raises:
            PatternError, DTypeError: the pattern does not fit.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class LinearKind(Kind):
    """A linear layer.

    Args:
        bias: whether the layer has one.
        trains: whether the weight needs a gradient.
        passes: whether the input needs a gradient.
    """

    bias: bool
    trains: bool
    passes: bool

    @property
    def what(self) -> str:
        """The name of the kind of layer."""
        return "Linear"

    def make(self, pattern: Pattern | None) -> tuple[nn.Module, Arguments]:
        """Return a layer with random weights and a random input."""
        sizes = self.in_features, self.out_features, self.bias
        layer: nn.Module
        if pattern is None:
            layer = nn.Linear(*sizes, dtype=self.dtype)
        else:
            layer = SparseLinear(*sizes, dtype=self.dtype, pattern=pattern)
        x = torch.randn(self.rows, self.in_features).to(self.dtype)
        return layer.requires_grad_(self.trains), ((x.requires_grad_(self.passes),), {})


@dataclass(frozen=True)
class ConvolutionKind(Kind):
    """A convolution.

    Args:
        bias: whether the layer has one.
        trains: whether the weight needs a gradient.
        passes: whether the input needs a gradient.
        window: how its taps lie, as items of a mapping.
        images: sizes of the input.
        channels_last: whether the channels of the input are neighbours in memory.
    """

    bias: bool
    trains: bool
    passes: bool
    window: tuple[tuple[str, Any], ...]
    images: tuple[int, ...]
    channels_last: bool

    @property
    def dims(self) -> int:
        """Dimensions of a kernel."""
        return len(dict(self.window)["kernel_size"])

    @property
    def what(self) -> str:
        """The name of the kind of layer."""
        return f"Conv{self.dims}d"

    def make(self, pattern: Pattern | None) -> tuple[nn.Module, Arguments]:
        """Return a layer with random weights and random images."""
        window = dict(self.window)
        channels = self.in_features // math.prod(window["kernel_size"]) * window["groups"]
        of = KINDS[self.dims - 1]
        kind: Any = of.dense if pattern is None else of
        extra = {} if pattern is None else {"pattern": pattern}
        layer = kind(
            channels, self.out_features, bias=self.bias, dtype=self.dtype, **window, **extra
        )
        x = torch.randn(self.images).to(self.dtype)
        if self.channels_last:
            x = x.contiguous(memory_format=_LAST[self.dims])
        return layer.requires_grad_(self.trains), ((x.requires_grad_(self.passes),), {})


_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def is_channels_last(x: Tensor, dims: int) -> bool:
    """Return whether the channels of a batch of images are neighbours in memory, and not pixels."""
    last = _LAST.get(dims)
    if last is None or x.dim() != dims + 2 or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=last)


@dataclass(frozen=True)
class ModuleKind(Kind):
    """A module that multiplies by matrices of its own: attention, recurrences, experts.

    It is timed as a whole, on the arguments that it received.

    Args:
        key: what its time depends on besides.
        of: the module; a copy is timed.
        named: names of its parameters that `sparsify` takes by `parameters` only.
        given: the arguments.
    """

    key: str
    of: nn.Module = field(compare=False, repr=False)
    named: tuple[str, ...] = field(compare=False)
    given: Arguments = field(compare=False, repr=False)

    @property
    def what(self) -> str:
        """The name of the kind of layer."""
        return type(self.of).__name__

    def make(self, pattern: Pattern | None) -> tuple[nn.Module, Arguments]:
        """Return a copy of the module, and copies of the arguments."""
        holder = nn.Sequential(copy.deepcopy(self.of))
        (args, kwargs) = copied(self.given)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            if SparseParameter.find_in(holder):
                densify(holder)
            if pattern is not None:
                named = [f"0.{name}" for name in self.named]
                example = args if len(args) == 1 and not kwargs and named else None
                sparsify(holder, pattern, parameters=named, example=example)
        return holder[0].eval(), (args, kwargs)


def copied(value: Any, memo: dict[int, Tensor] | None = None) -> Any:
    """Return a value with copies of its tensors, which need a gradient where they do.

    A tensor that is there twice is one tensor: attention of a tensor to itself takes another path.

    Example:
        >>> x = torch.ones(2)
        >>> a, b = copied((x, x))
        >>> a is b, a is x
        (True, False)
    """
    memo = {} if memo is None else memo
    if isinstance(value, Tensor):
        if id(value) not in memo:
            memo[id(value)] = value.detach().clone().requires_grad_(value.requires_grad)
        return memo[id(value)]
    if isinstance(value, Mapping):
        return {key: copied(part, memo) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(copied(part, memo) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(copied(part, memo) for part in value)
    return value


def described(value: Any) -> str:
    """Return a text of sizes, dtypes and gradients of the tensors in a value, and of the rest."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)}{value.dtype}{value.requires_grad}{value.stride()}"
    if isinstance(value, Mapping):
        return str({key: described(part) for key, part in value.items()})
    if isinstance(value, tuple | list):
        return str([described(part) for part in value])
    return str(value)


__all__ = [
    "Arguments",
    "ConvolutionKind",
    "Kind",
    "LinearKind",
    "ModuleKind",
    "copied",
    "described",
    "is_channels_last",
]
