"""Public spmm, spmm_t and sddmm: argument checks and choice of the execution path.

A plain tensor in eager mode takes the autograd functions (`gossamer.ops.autograd`). Everything that
traces (torch.compile, export, fake and meta tensors) takes the registered ops
(`gossamer.ops.library`); so does the first path while a recorder looks on. A NumPy array takes the
first path without autograd.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.arguments import shown
from gossamer.backend import Transposed
from gossamer.backend.registry import devices, is_registered
from gossamer.errors import DeviceError, DTypeError, PatternError, ShapeError
from gossamer.ops import autograd, library
from gossamer.ops.autocast import autocast, is_autocast
from gossamer.ops.own import has_own, own_kernel, with_own_gradients
from gossamer.ops.recording import refuse_onnx, tracing
from gossamer.patterns import OPERATORS
from gossamer.weight import SparseWeight
from gossamer.weight.naming import describe
from gossamer.weight.sharding import is_sharded

Array = TypeVar("Array", Tensor, np.ndarray[Any, Any])

_PLAIN = (Tensor, nn.Parameter)
_NAMES = {"spmm": ("x",), "spmm_t": ("grad_output",), "sddmm": ("grad_output", "x")}


def spmm(
    x: Array, weight: SparseWeight, bias: Array | None = None, values: Tensor | None = None
) -> Array:
    """Compute Y = X W^T + b, the forward product of a linear layer.

    Args:
        x: Tensor or array [..., cols] of the values' dtype, any strides.
        weight: The sparse matrix W [rows, cols].
        bias: [rows] of the same dtype, or None.
        values: Tensor [nnz] that is multiplied by in the place of `weight.values`, in the same
            order; x is a tensor then.

    Returns:
        [..., rows], a tensor for a tensor, a NumPy array for an array.

    Raises:
        ShapeError, DTypeError, DeviceError: An argument does not fit the weight.
        PatternError: `values` was given, and the weight's pattern has a registered kernel.

    Example:
        >>> import torch, gossamer
        >>> weight = gossamer.SparseWeight.from_dense(torch.tensor([[1.0, -3.0, 2.0, 0.5]]), "2:4")
        >>> gossamer.spmm(torch.tensor([[1.0, 1.0, 1.0, 1.0]]), weight)
        tensor([[-1.]], grad_fn=<_SpmmBackward>)
    """
    left: Any = x
    if values is not None:
        _check_values(values, weight)
    if OPERATORS and has_own(weight):
        if values is not None:
            raise PatternError(
                f"values= was given, and the kernels that are registered for {weight.pattern} read "
                "the weight's own: use a pattern without them"
            )
        run = own_kernel("spmm", weight) or (lambda left: _spmm(left, weight, None))
        y = with_own_gradients("spmm", weight, left, run, spmm_t, sddmm)
        return y if bias is None else y + cast(Any, bias)  # type: ignore[no-any-return]
    return cast(Array, _spmm(left, weight, bias, values))


def _spmm(left: Any, weight: SparseWeight, bias: Any, values: Any = None) -> Any:
    if not is_plain(left):
        return _general("spmm", weight, left, bias=bias, values=values)
    used, b = _values(weight) if values is None else values, bias
    _check_bias(b)
    if is_autocast(left):
        left, used, b = autocast(left, used, b, device=left.device.type)
    _check_last("x", left, weight.shape[1], weight)
    return autograd.spmm(left, used, weight.structure, b, weight.transposed)


def spmm_t(grad_output: Array, weight: SparseWeight) -> Array:
    """Compute G W, the gradient of a linear layer's input.

    Args:
        grad_output: Tensor or array [..., rows] of the values' dtype, any strides.
        weight: The sparse matrix W [rows, cols].

    Returns:
        [..., cols], a tensor for a tensor, a NumPy array for an array.

    Raises:
        ShapeError, DTypeError, DeviceError: An argument does not fit the weight.

    Example:
        >>> import torch, gossamer
        >>> weight = gossamer.SparseWeight.from_dense(torch.tensor([[1.0, -3.0, 2.0, 0.5]]), "2:4")
        >>> gossamer.spmm_t(torch.tensor([[10.0]]), weight).tolist()
        [[0.0, -30.0, 20.0, 0.0]]
    """
    left: Any = grad_output
    if OPERATORS and has_own(weight):
        run = own_kernel("spmm_t", weight) or (lambda left: _spmm_t(left, weight))
        return with_own_gradients("spmm_t", weight, left, run, spmm, sddmm)  # type: ignore[no-any-return]
    return cast(Array, _spmm_t(left, weight))


def _spmm_t(left: Any, weight: SparseWeight) -> Any:
    if not is_plain(left):
        return _general("spmm_t", weight, left)
    values = _values(weight)
    if is_autocast(left):
        left, values = autocast(left, values, device=left.device.type)
    _check_last("grad_output", left, weight.shape[0], weight)
    return autograd.spmm_t(left, values, weight.structure, _exact(weight))


def sddmm(grad_output: Array, x: Array, weight: SparseWeight) -> Array:
    """Compute G^T X at the kept entries, the gradient of a linear layer's weight.

    Args:
        grad_output: Tensor or array [..., rows], any strides.
        x: [..., cols] with the same leading sizes and dtype, any strides.
        weight: The weight whose structure is used; its values are not read.

    Returns:
        [nnz] in the order of `weight.values`, a torch tensor for tensors, else a NumPy array.

    Raises:
        ShapeError, DTypeError, DeviceError: An argument does not fit the weight.

    Example:
        >>> import torch, gossamer
        >>> weight = gossamer.SparseWeight.from_dense(torch.tensor([[1.0, -3.0, 2.0, 0.5]]), "2:4")
        >>> gossamer.sddmm(torch.tensor([[10.0]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]]), weight)
        tensor([20., 30.])
    """
    left, right = cast(Any, grad_output), cast(Any, x)
    if OPERATORS and (own := own_kernel("sddmm", weight)):
        return own(left, right)  # type: ignore[no-any-return]
    if not (is_plain(left) and is_plain(right)):
        return cast(Array, _general("sddmm", weight, left, right))
    _values(weight)
    if is_autocast(left):
        left, right = autocast(left, right, device=left.device.type)
    _check_pair(left, right, weight)
    return autograd.sddmm(left, right, weight.structure, _exact(weight))  # type: ignore[return-value]


def is_plain(x: Any) -> bool:
    """Return whether x takes the eager path: strided memory on a registered device, no tracing.

    A lazily negated view does not: its memory holds the wrong sign, and the dispatcher resolves it
    on the other path.
    """
    return not (
        torch.compiler.is_compiling()
        or type(x) not in _PLAIN
        or not (x.is_cpu or is_registered(x))
        or x.layout is not torch.strided
        or x.is_neg()
    )


def _general(
    verb: str, weight: SparseWeight, *args: Any, bias: Any = None, values: Any = None
) -> Any:
    """Take one of the other paths, after the same checks."""
    _values(weight)
    refuse_onnx(weight)
    if values is None and all(isinstance(arg, np.ndarray) for arg in args):
        return _on_arrays(verb, weight, args, bias)
    for name, arg in zip(_NAMES[verb], args, strict=True):
        if not isinstance(arg, Tensor):
            raise DTypeError(
                f"{name} is {type(arg).__name__}; {verb} takes torch tensors or NumPy arrays, "
                "all of one kind"
            )
        if is_sharded(arg):
            raise DTypeError(
                f"{name} is a DTensor and {describe(weight)} takes ordinary tensors: split the "
                "layer with a style of gossamer.distributed.tensor_parallel, "
                f"pass {name}.full_tensor(), or use gossamer.densify() and torch's own styles"
            )
        if not (arg.is_meta or is_registered(arg)):
            raise DeviceError(
                f"{name} is on {arg.device}; the kernels run on {' and '.join(devices())}: use "
                f"{name}.cpu()"
            )
        if arg.device.type != weight.values.device.type and "meta" not in _kinds(arg, weight):
            raise DeviceError(
                f"{name} is on {arg.device} and {describe(weight)} on {weight.values.device}; one "
                f"call runs on one device: use {name}.to({str(weight.values.device)!r})"
            )
        if arg.layout is not torch.strided:
            raise DTypeError(f"{name} has layout {arg.layout}; use {name}.to_dense()")
    if verb == "sddmm":
        grad_output, x = args
        _check_pair(grad_output, x, weight)
        return library.sddmm(grad_output, x, weight)
    if verb == "spmm_t":
        _check_last("grad_output", args[0], weight.shape[0], weight)
        return library.spmm_t(args[0], weight)
    _check_last("x", args[0], weight.shape[1], weight)
    _check_bias(bias)
    return library.spmm(args[0], weight, bias, values)


def _kinds(x: Tensor, weight: SparseWeight) -> tuple[str, str]:
    return x.device.type, weight.values.device.type


def _on_arrays(verb: str, weight: SparseWeight, args: tuple[Any, ...], bias: Any) -> Any:
    """Map NumPy arrays to a NumPy array, without autograd."""
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
    """Return a view of the array, or a copy if torch cannot view it (read-only, reversed)."""
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
    # From the dict: the look-up of an attribute costs a module 0.5 us.
    values = weight._parameters.get("values")
    values = weight.values if values is None else values
    if type(values) not in _PLAIN and is_sharded(values):
        raise DTypeError(
            f"the values of {describe(weight)} are sharded: call the module that fully_shard was "
            "applied to, which gathers them, and not a layer inside it; or unshard() it first"
        )
    return values


def _check_values(values: object, weight: object) -> None:
    if not isinstance(values, Tensor):
        raise DTypeError(f"values is {shown(values)}; it must be a tensor, or None")
    if isinstance(weight, SparseWeight) and values.shape != (weight.nnz,):
        raise ShapeError(
            f"values has shape {tuple(values.shape)}; a weight of {weight.nnz} kept entries needs "
            f"[{weight.nnz}]"
        )


def _exact(weight: SparseWeight) -> Transposed | None:
    """Return the transpose, or None if it is pruned: only the backward pass of spmm uses that."""
    return None if weight.backward == "double_pruned" else weight.transposed


def _check_bias(bias: Any) -> None:
    if bias is not None and not isinstance(bias, Tensor):
        raise DTypeError(f"bias is {type(bias).__name__}; it must be a tensor, as x is")


def _check_pair(grad_output: Tensor, x: Tensor, weight: SparseWeight) -> None:
    _check_last("grad_output", grad_output, weight.shape[0], weight)
    _check_last("x", x, weight.shape[1], weight)
    if grad_output.shape[:-1] != x.shape[:-1]:
        raise ShapeError(
            f"grad_output is {tuple(grad_output.shape)} and x is {tuple(x.shape)}; their leading "
            "sizes must agree: pass the two of one forward pass"
        )


def _check_last(name: str, x: Tensor, size: int, weight: SparseWeight) -> None:
    if tracing() is not None:  # sizes are tensors there; the operator checks them
        refuse_onnx(weight)
    elif x.dim() == 0 or x.shape[-1] != size:
        rows, cols = weight.shape
        raise ShapeError(
            f"{name} has shape {tuple(x.shape)}; its last size must be {size} for a weight of "
            f"{rows}x{cols}"
        )
