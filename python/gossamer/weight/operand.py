"""Operand: what torch's functions see of a sparse matrix, so that `F.linear(x, w)` works.

torch asks every argument for `__torch_function__` (NumPy's protocol of overrides), so no subclass
of Tensor is needed: values stay one ordinary Parameter. What each function does with an operand is
registered by `gossamer.ops.torch_calls`; every other function is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import DTypeError
from gossamer.weight.naming import describe

CALLS: dict[Any, Callable[..., Any]] = {}
"""What a function of torch computes for an operand; by its name for functions of others."""


class Operand:
    """A matrix [rows, cols], or a stack [n, rows, cols] of matrices, that torch multiplies by.

    A subclass has `shape`, and the products that `gossamer.ops.torch_calls` asks for.
    """

    shape: torch.Size

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute a function of torch.

        Raises:
            DTypeError: it has no sparse form.
        """
        kwargs = {} if kwargs is None else kwargs
        if func in CALLS:
            return CALLS[func](*args, **kwargs)
        if (name := getattr(func, "__name__", "")) in CALLS:
            return CALLS[name](*args, **kwargs)
        if getattr(func, "__module__", None) == "torch.nn.init":
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        raise refused(func, (*args, *kwargs.values()))

    def t(self) -> Any:
        """Return the transpose, a view."""
        return Turned(self)

    @property
    def T(self) -> Any:  # noqa: N802 - the name that tensors have
        """The transpose, a view."""
        return self.t()

    @property
    def mT(self) -> Any:  # noqa: N802 - the name that tensors have
        """The transpose of each matrix, a view."""
        return self.t()

    def transpose(self, dim0: int, dim1: int) -> Any:
        """Return the view with the last two dimensions exchanged.

        Raises:
            DTypeError: other dimensions are asked for.
        """
        count = len(self.shape)
        if {(dim0, dim1), (dim1, dim0)} & {
            (a, b) for a in (-2, count - 2) for b in (-1, count - 1)
        }:
            return self.t()
        raise refused("transpose of other dimensions", (self,))

    def __matmul__(self, other: Any) -> Any:
        if not isinstance(other, Tensor | Operand):
            raise refused(f"@ with {type(other).__name__}", (self,))
        return torch.matmul(self, other)  # type: ignore[arg-type]


def _refusing(name: str) -> Callable[..., Any]:
    def method(self: Operand, *args: Any, **kwargs: Any) -> Any:
        raise refused(f"{name} of a tensor", (self,))

    method.__name__ = name
    method.__doc__ = "Not available: there is no dense tensor."
    return method


# What model code calls on a weight besides products: an error with the layer's name.
_UNAVAILABLE = (
    "sum", "mean", "norm", "abs", "pow", "square", "sqrt", "clamp", "clone", "detach", "view",
    "reshape", "permute", "flatten", "squeeze", "unsqueeze", "expand", "repeat", "chunk", "split",
    "add", "sub", "mul", "div", "softmax", "__add__", "__radd__", "__sub__", "__rsub__", "__mul__",
    "__rmul__", "__truediv__", "__neg__", "__pow__", "__getitem__",
)  # fmt: skip
for _method in _UNAVAILABLE:
    setattr(Operand, _method, _refusing(_method))


class Turned(Operand):
    """The transpose of an operand, a view; of a stack, of each matrix.

    Args:
        of: the operand.
    """

    def __init__(self, of: Any) -> None:
        self.of = of

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        """Its sizes, the last two exchanged."""
        *first, rows, cols = self.of.shape
        return torch.Size((*first, cols, rows))

    def size(self, dim: int | None = None) -> Any:
        """Return the shape, or one of its sizes."""
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        return self.shape[0]

    def t(self) -> Any:
        """Return the operand itself."""
        return self.of

    def contiguous(self) -> Turned:
        """Return it: the order of the entries is the kernels' own."""
        return self

    def __getitem__(self, key: Any) -> Any:
        return self.of[key].t()

    def __getattr__(self, name: str) -> Any:
        if name in ("dtype", "device", "ndim", "dim", "requires_grad", "numel"):
            return getattr(self.of, name)
        raise AttributeError(
            f"the transpose of {_name(self.of)} has no {name!r}: it takes part in products only"
        )


def refused(func: Any, args: Iterable[Any]) -> DTypeError:
    """Return the error of a function that has no form for an operand among its arguments."""
    flat = [part for arg in args for part in (arg if isinstance(arg, list | tuple) else (arg,))]
    operand = next((arg for arg in flat if isinstance(arg, Operand)), None)
    what = func if isinstance(func, str) else f"torch's {getattr(func, '__name__', func)}"
    return DTypeError(
        f"{what} was called with the sparse weight of {_name(operand)}, and has no form for it; "
        "products (F.linear, @, mm, addmm, bmm, einsum of two) have: use one of them, or keep this "
        "layer dense (exclude=...)"
    )


def _name(operand: Any) -> str:
    while not isinstance(operand, nn.Module) and hasattr(operand, "of"):
        operand = operand.of
    return describe(operand) if isinstance(operand, nn.Module) else type(operand).__name__


def check_tensor(x: Any, func: str, operand: Any) -> Tensor:
    """Return x; DTypeError if it is no tensor."""
    if isinstance(x, Tensor):
        return x
    raise refused(func, (operand,))


__all__ = ["CALLS", "Operand", "Turned", "check_tensor", "refused"]
