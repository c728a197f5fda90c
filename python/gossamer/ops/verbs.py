"""spmm, spmm_t and sddmm as users call them: which road a call takes, and its clear errors.

A plain CPU tensor in eager mode takes the autograd functions (`functions`), everything that traces
(torch.compile, export, fake and meta tensors) the registered ops
(`library`), a NumPy array the kernels without autograd.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.backend import Transposed
from gossamer.errors import DeviceError, DTypeError, ShapeError
from gossamer.ops import functions, library
from gossamer.weight import SparseWeight

Array = TypeVar("Array", Tensor, np.ndarray[Any, Any])

_PLAIN = (Tensor, nn.Parameter)
_NAMES = {"spmm": ("x",), "spmm_t": ("g",), "sddmm": ("g", "x")}


def spmm(x: Array, weight: SparseWeight, bias: Array | None = None) -> Array:
    """Y = X W^T + b: the forward product of a linear layer.

    Args:
        x: [..., cols] of the values' dtype, any strides.
        weight: the sparse matrix W [rows, cols].
        bias: [rows] of the same dtype.

    Returns:
        [..., rows], a torch tensor for a tensor, a NumPy array for an array.

    Raises:
        ShapeError, DTypeError, DeviceError: an argument does not fit the weight.

    Example:
        >>> import torch, gossamer
        >>> weight = gossamer.SparseWeight.from_dense(torch.tensor([[1.0, -3.0, 2.0, 0.5]]), "2:4")
        >>> gossamer.spmm(torch.tensor([[1.0, 1.0, 1.0, 1.0]]), weight)
        tensor([[-1.]], grad_fn=<_SpmmBackward>)
    """
    left: Any = x
    if not _is_plain(left):
        return cast(Array, _general("spmm", weight, left, bias=bias))
    values, b = _values(weight), cast(Any, bias)
    _check_bias(b)
    if torch.is_autocast_enabled("cpu"):
        left, values, b = functions.autocast(left, values, b)
    _check_last("x", left, weight.shape[1], weight)
    return functions.spmm(left, values, b, weight.structure, weight.transposed)  # type: ignore[return-value]


def spmm_t(g: Array, weight: SparseWeight) -> Array:
    """G W: the gradient of a linear layer's input.

    Args:
        g: [..., rows] of the values' dtype, any strides.
        weight: the sparse matrix W [rows, cols].

    Returns:
        [..., cols], a torch tensor for a tensor, a NumPy array for an array.

    Raises:
        ShapeError, DTypeError, DeviceError: an argument does not fit the weight.

    Example:
        >>> import torch, gossamer
        >>> weight = gossamer.SparseWeight.from_dense(torch.tensor([[1.0, -3.0, 2.0, 0.5]]), "2:4")
        >>> gossamer.spmm_t(torch.tensor([[10.0]]), weight).tolist()
        [[0.0, -30.0, 20.0, 0.0]]
    """
    left: Any = g
    if not _is_plain(left):
        return cast(Array, _general("spmm_t", weight, left))
    values = _values(weight)
    if torch.is_autocast_enabled("cpu"):
        left, values = functions.autocast(left, values)
    _check_last("g", left, weight.shape[0], weight)
    return functions.spmm_t(left, values, weight.structure, _exact(weight))  # type: ignore[return-value]


def sddmm(g: Array, x: Array, weight: SparseWeight) -> Array:
    """G^T X at the kept entries only: the gradient of a linear layer's weight.

    Args:
        g: [..., rows], any strides.
        x: [..., cols] with the same leading sizes and dtype, any strides.
        weight: gives the structure; its values are not read.

    Returns:
        [nnz] in the order of `weight.values`, a torch tensor for tensors, else a NumPy array.

    Raises:
        ShapeError, DTypeError, DeviceError: an argument does not fit the weight.

    Example:
        >>> import torch, gossamer
        >>> weight = gossamer.SparseWeight.from_dense(torch.tensor([[1.0, -3.0, 2.0, 0.5]]), "2:4")
        >>> gossamer.sddmm(torch.tensor([[10.0]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]]), weight)
        tensor([20., 30.])
    """
    left, right = cast(Any, g), cast(Any, x)
    if not (_is_plain(left) and _is_plain(right)):
        return cast(Array, _general("sddmm", weight, left, right))
    _values(weight)
    if torch.is_autocast_enabled("cpu"):
        left, right = functions.autocast(left, right)
    _check_pair(left, right, weight)
    return functions.sddmm(left, right, weight.structure, _exact(weight))  # type: ignore[return-value]


def _is_plain(x: Any) -> bool:
    """Whether x takes the eager road: strided memory on the CPU, and nobody traces.

    A lazily negated view is not plain, for its memory holds the wrong sign: the dispatcher
    resolves it on the other road.
    """
    return not (
        torch.compiler.is_compiling()
        or type(x) not in _PLAIN
        or not x.is_cpu
        or x.layout is not torch.strided
        or x.is_neg()
    )


def _general(verb: str, weight: SparseWeight, *args: Any, bias: Any = None) -> Any:
    """The other roads, behind the same checks."""
    _values(weight)
    if all(isinstance(arg, np.ndarray) for arg in args):
        return _on_arrays(verb, weight, args, bias)
    for name, arg in zip(_NAMES[verb], args, strict=True):
        if not isinstance(arg, Tensor):
            raise DTypeError(
                f"{name} is {type(arg).__name__}; {verb} takes torch tensors or NumPy arrays, "
                "all of one kind"
            )
        if arg.is_cuda:
            raise DeviceError(
                f"{name} is on {arg.device}; this build has CPU kernels only: use {name}.cpu()"
            )
        if arg.layout is not torch.strided:
            raise DTypeError(f"{name} has layout {arg.layout}; use {name}.to_dense()")
    if verb == "sddmm":
        g, x = args
        _check_pair(g, x, weight)
        return library.sddmm(g, x, weight)
    if verb == "spmm_t":
        _check_last("g", args[0], weight.shape[0], weight)
        return library.spmm_t(args[0], weight)
    _check_last("x", args[0], weight.shape[1], weight)
    _check_bias(bias)
    return library.spmm(args[0], weight, bias)


def _on_arrays(verb: str, weight: SparseWeight, args: tuple[Any, ...], bias: Any) -> Any:
    """NumPy in, NumPy out; no autograd."""
    tensors = [_tensor_of(arg) for arg in args]
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        if verb == "spmm":
            out = spmm(tensors[0], weight, None if bias is None else _tensor_of(bias))
        elif verb == "spmm_t":
            out = spmm_t(tensors[0], weight)
        else:
            out = sddmm(tensors[0], tensors[1], weight)
    return out.numpy()


def _tensor_of(array: Any) -> Tensor:
    """A view of the array, or a copy where torch cannot hold a view (read-only, reversed)."""
    if isinstance(array, Tensor):
        return array
    if not isinstance(array, np.ndarray):
        raise DTypeError(f"{type(array).__name__} was given; use a NumPy array or a torch tensor")
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise DTypeError(
            f"an array of dtype {array.dtype} was given; use float32 or float64"
        ) from None


def _values(weight: SparseWeight) -> Tensor:
    if not isinstance(weight, SparseWeight):
        raise DTypeError(
            f"weight is {type(weight).__name__}; it must be a SparseWeight: build one with "
            "gossamer.SparseWeight.from_dense(weight, pattern)"
        )
    return weight.values


def _exact(weight: SparseWeight) -> Transposed | None:
    """The transpose, unless it is pruned: that one is for the backward pass of spmm alone."""
    return None if weight.backward == "double_pruned" else weight.transposed


def _check_bias(bias: Any) -> None:
    if bias is not None and not isinstance(bias, Tensor):
        raise DTypeError(f"bias is {type(bias).__name__}; it must be a tensor, as x is")


def _check_pair(g: Tensor, x: Tensor, weight: SparseWeight) -> None:
    _check_last("g", g, weight.shape[0], weight)
    _check_last("x", x, weight.shape[1], weight)
    if g.shape[:-1] != x.shape[:-1]:
        raise ShapeError(
            f"g is {tuple(g.shape)} and x is {tuple(x.shape)}; their leading sizes must agree"
        )


def _check_last(name: str, x: Tensor, size: int, weight: SparseWeight) -> None:
    if x.dim() == 0 or x.shape[-1] != size:
        rows, cols = weight.shape
        raise ShapeError(
            f"{name} has shape {tuple(x.shape)}; its last size must be {size} for a weight of "
            f"{rows}x{cols}"
        )
