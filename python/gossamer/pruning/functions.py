"""Rules for tensor functions and methods: arithmetic, concatenation, moves, activations."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from gossamer.pruning.analysis import Analysis, Known, UnknownError
from gossamer.pruning.channels import Features, Size
from gossamer.pruning.layers import pooled
from gossamer.pruning.moves import relabelled

_SAME = {"to", "float", "double", "clone", "detach", "contiguous"}
_ELEMENTWISE = {
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh"),
    *("sigmoid", "logsigmoid", "hardtanh", "hardsigmoid", "hardswish", "softplus", "softsign"),
    *("tanhshrink", "softshrink", "hardshrink", "threshold", "abs", "neg", "exp", "log1p", "sin"),
    *("cos", "erf", "square", "clamp", "clamp_min", "clamp_max"),
}
_DROPOUTS = {"dropout", "dropout1d", "dropout2d", "alpha_dropout"}
# Names of the relevant options after the tensor argument.
_POOLS = {
    "max_pool1d": (),
    "max_pool2d": (),
    "avg_pool1d": ("kernel_size", "stride", "padding"),
    "avg_pool2d": ("kernel_size", "stride", "padding", "", "", "divisor_override"),
    "adaptive_avg_pool1d": (),
    "adaptive_avg_pool2d": (),
}
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": operator.truediv,
    "div": operator.truediv,
}
_CONCATENATIONS = {"cat", "concat", "concatenate"}
# These depend on axes only, not on the number of features.
_MOVES = {
    *("flatten", "permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"),
    *("unsqueeze", "flip", "t"),
}
_MEANS = {"mean", "amax", "amin"}
_VIEWS = {"view", "reshape"}


def function_rule(analysis: Analysis, node: fx.Node) -> Known:
    """Return the features of the result of a function or method.

    Raises:
        UnknownError: the channels that it reads must be kept.
    """
    name = _name(node)
    if all(analysis.known[source] is None for source in node.all_input_nodes):
        return _of_shape(analysis, node) if _is_item(analysis, node) else None
    if node.target is getattr:
        return _attribute(analysis, node)
    if name == "size":
        return _size(analysis, node)
    if name == "dim":
        return None
    if name in _CONCATENATIONS:
        return _concatenated(analysis, node)
    if name in _ARITHMETIC:
        return _arithmetic(analysis, node, _ARITHMETIC[name])
    if name in _VIEWS:
        return _viewed(analysis, node)
    return _of_one(analysis, node, name)


def _of_one(analysis: Analysis, node: fx.Node, name: str) -> Known:
    """Return the features of a function of one tensor, whose options do not concern channels."""
    first = node.args[0] if node.args else None
    source = analysis.features(first)
    others = [other for other in node.all_input_nodes if other is not first]
    if source is None or any(analysis.is_tensor(n) or analysis.known[n] for n in others):
        raise UnknownError(f"no rule for {name} of these arguments")
    value = analysis.value(first)
    if name in _SAME:
        return source
    if name in _DROPOUTS:
        on = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
        if on is not False:
            raise UnknownError("a dropout that is on in evaluation")
        return source
    if name in _POOLS:
        settings = dict(zip(_POOLS[name], node.args[1:], strict=False)) | dict(node.kwargs)
        return pooled(source, analysis.value(node), name, settings)
    apply = _call(analysis, node)
    if name in _ELEMENTWISE:
        constant = torch.where(source.constant.isnan(), torch.nan, apply(source.constant.clone()))
        return Features(source.axis, source.ids, constant)
    if name in _MOVES or name in _MEANS or (name == "squeeze" and len(node.args) > 1):
        return relabelled(source, value, apply)
    if name == "getitem":
        moved = relabelled(source, value, apply)
        if _is_plain(node.args[1]) and torch.equal(moved.ids, source.ids):
            return moved
    raise UnknownError(f"no rule for {name}")


def _call(analysis: Analysis, node: fx.Node) -> Callable[[Tensor], Tensor]:
    """Return a node's operation as a function of its first argument."""
    args: Any = fx.node.map_arg(node.args[1:], analysis.value)
    kwargs: Any = fx.node.map_arg(node.kwargs, analysis.value)
    if node.op == "call_method":
        return lambda x: getattr(x, str(node.target))(*args, **kwargs)
    return lambda x: node.target(x, *args, **kwargs)  # type: ignore[operator]


def _viewed(analysis: Analysis, node: fx.Node) -> Features:
    """Return the features of a reshape that adapts to their number, by -1 or a queried size."""
    source = analysis.features(node.args[0])
    if source is None or node.kwargs:
        raise UnknownError("a view by the number of channels of another tensor")
    given = node.args[1:]
    sizes = list(given[0] if isinstance(given[0], tuple | list) else given)
    moved = relabelled(source, analysis.value(node.args[0]), _call(analysis, node))
    for axis, size in enumerate(sizes):
        known = analysis.known[size] if isinstance(size, fx.Node) else None
        if isinstance(known, Features) or (known is not None) != (
            axis == moved.axis and size != -1
        ):
            raise UnknownError("a view with a fixed number of features: flatten(1) takes any")
        if isinstance(known, Size):
            if len(known.ids) != len(moved.ids):
                raise UnknownError("a view by the number of channels of another tensor")
            analysis.channels.join(known.ids, moved.ids)
    return moved


def _concatenated(analysis: Analysis, node: fx.Node) -> Features:
    parts = node.args[0]
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    if not isinstance(parts, list | tuple) or not isinstance(dim, int):
        raise UnknownError("a concatenation along what cannot be told")
    axes = {known.axis for known in map(analysis.features, parts) if known is not None}
    if len(axes) != 1:
        raise UnknownError("a concatenation of different layouts")
    (axis,) = axes
    every = [analysis.whole(part, axis) for part in parts]
    if dim % analysis.value(node).dim() == axis:
        ids = torch.cat([known.ids for known in every])
        return Features(axis, ids, torch.cat([known.constant for known in every]))
    constant = every[0].constant
    for other in every[1:]:
        analysis.channels.join(every[0].ids, other.ids)
        constant = torch.where(constant == other.constant, constant, torch.nan)
    return Features(axis, every[0].ids, constant)


def _arithmetic(analysis: Analysis, node: fx.Node, operate: Callable[[Any, Any], Any]) -> Features:
    if node.kwargs or len(node.args) != 2:
        raise UnknownError(f"{_name(node)} with options")
    if not all(analysis.is_tensor(side) for side in node.args):
        return _with_number(analysis, node, operate)
    total: Tensor = analysis.value(node)
    # Axes are counted from the last, as in broadcasting.
    axes = set()
    for side in node.args:
        known, value = analysis.features(side), analysis.value(side)
        if known is not None and value.shape[known.axis] > 1:
            axes.add(known.axis - value.dim())
    if len(axes) != 1:
        raise UnknownError(f"{_name(node)} of different layouts")
    (axis,) = axes
    constants, full = [], []
    for side in node.args:
        value = analysis.value(side)
        if value.dim() >= -axis and value.shape[axis] > 1:
            known = analysis.whole(side, value.dim() + axis)
            full.append(known)
            constants.append(known.constant)
        else:  # one number for all channels
            known = analysis.features(side)
            if known is not None:
                analysis.channels.pin(known.ids)
            constants.append(torch.full((total.shape[axis],), torch.nan, dtype=torch.float64))
    if len(full) == 2:
        analysis.channels.join(full[0].ids, full[1].ids)
    constant = operate(*constants)
    if operate is operator.mul:  # zero times anything is zero
        constant = torch.where((constants[0] == 0) | (constants[1] == 0), 0.0, constant)
    return Features(total.dim() + axis, full[0].ids, constant)


def _with_number(analysis: Analysis, node: fx.Node, operate: Callable[[Any, Any], Any]) -> Features:
    left, right = node.args
    tensor, number = (left, right) if analysis.is_tensor(left) else (right, left)
    source = analysis.features(tensor)
    if source is None or (isinstance(number, fx.Node) and analysis.known[number] is not None):
        raise UnknownError("a computation with the number of channels")
    if isinstance(number, fx.Node):  # it varies with the shape of the input
        zero = (source.constant == 0) & (tensor is left)
        if operate not in (operator.mul, operator.truediv):
            zero = torch.zeros_like(zero)
        constant = torch.full_like(source.constant, torch.nan).masked_fill(zero, 0.0)
        return Features(source.axis, source.ids, constant)
    constant = operate(*(source.constant if side is tensor else side for side in node.args))
    return Features(source.axis, source.ids, constant)


def _attribute(analysis: Analysis, node: fx.Node) -> Known:
    if node.args[1] in ("dtype", "device", "ndim"):
        return None
    if node.args[1] == "shape" and _only_items(analysis, node):
        return None
    raise UnknownError(f"it reads .{node.args[1]}")


def _size(analysis: Analysis, node: fx.Node) -> Known:
    if len(node.args) == 1 and not node.kwargs and _only_items(analysis, node):
        return None
    index = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return _one_size(analysis, node.args[0], index)


def _is_item(analysis: Analysis, node: fx.Node) -> bool:
    return node.target is operator.getitem and isinstance(analysis.value(node.args[0]), torch.Size)


def _only_items(analysis: Analysis, node: fx.Node) -> bool:
    """Return whether a shape is used for single sizes only."""
    return all(_is_item(analysis, u) and isinstance(u.args[1], int) for u in node.users)


def _of_shape(analysis: Analysis, node: fx.Node) -> Known:
    shape: fx.Node = node.args[0]  # type: ignore[assignment]
    if shape.op in ("call_function", "call_method") and shape.args:
        return _one_size(analysis, shape.args[0], node.args[1])
    return None


def _one_size(analysis: Analysis, tensor: Any, index: Any) -> Known:
    known = analysis.features(tensor) if isinstance(tensor, fx.Node) else None
    if known is None:
        return None
    if not isinstance(index, int):
        raise UnknownError("a size along what cannot be told")
    return Size(known.ids) if index % analysis.value(tensor).dim() == known.axis else None


def _is_plain(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is ... or isinstance(part, int | slice) for part in parts)


def _name(node: fx.Node) -> str:
    """Return the name of an operation, without the mark of an in-place one."""
    if node.op == "call_method":
        name = str(node.target)
    else:
        name = str(getattr(node.target, "__name__", "a function"))
        home = getattr(node.target, "__module__", None) or "torch"
        if home.split(".")[0] not in ("torch", "_operator", "builtins", "math"):
            return f"{home}.{name}"
    if name in ("iadd", "isub", "imul", "itruediv"):
        return name[1:]
    return name.rstrip("_") if not name.startswith("_") else name
