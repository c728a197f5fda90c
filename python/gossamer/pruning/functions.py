"""Rules for tensor functions and methods: arithmetic, concatenation, moves, activations."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gossamer.pruning.analysis import Analysis, Known, UnknownError
from gossamer.pruning.channels import Features
from gossamer.pruning.layers import pooled
from gossamer.pruning.moves import relabelled
from gossamer.pruning.products import attended, multiplied
from gossamer.pruning.shapes import called_on, padded, split, viewed
from gossamer.pruning.sizes import origins_of
from gossamer.pruning.trace import Node, mapped

_SAME = {
    *("to", "float", "double", "half", "bfloat16", "type", "type_as", "clone", "detach"),
    *("contiguous", "cpu", "cuda", "alias"),
}
_ELEMENTWISE = {
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh"),
    *("sigmoid", "logsigmoid", "hardtanh", "hardsigmoid", "hardswish", "softplus", "softsign"),
    *("tanhshrink", "softshrink", "hardshrink", "threshold", "abs", "neg", "exp", "log1p", "sin"),
    *("cos", "erf", "square", "clamp", "clamp_min", "clamp_max", "pow", "sqrt", "rsqrt"),
    *("reciprocal",),
}
_DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"}
# Names of the relevant options after the tensor argument.
_AVERAGE = ("kernel_size", "stride", "padding")
_POOLS = {
    "max_pool1d": (),
    "max_pool2d": (),
    "max_pool3d": (),
    "avg_pool1d": _AVERAGE,
    "avg_pool2d": (*_AVERAGE, "", "", "divisor_override"),
    "avg_pool3d": (*_AVERAGE, "", "", "divisor_override"),
    "adaptive_avg_pool1d": (),
    "adaptive_avg_pool2d": (),
    "adaptive_avg_pool3d": (),
}
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "subtract": operator.sub,
    "mul": operator.mul,
    "multiply": operator.mul,
    "truediv": operator.truediv,
    "div": operator.truediv,
    "divide": operator.truediv,
}
_CONCATENATIONS = {"cat", "concat", "concatenate"}
# These depend on axes only, not on the number of features.
_MOVES = {
    *("flatten", "permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"),
    *("unsqueeze", "flip", "t", "T", "mT", "roll"),
}
_MEANS = {"mean", "sum", "amax", "amin"}
# Functions of several tensors, entry by entry.
_TOGETHER = {
    *("where", "maximum", "minimum", "fmax", "fmin", "lerp", "addcmul", "addcdiv", "masked_fill"),
    *("gt", "lt", "ge", "le", "eq", "ne", "greater", "less", "logical_and", "logical_or"),
}
_VIEWS = {"view", "reshape", "unflatten", "expand", "repeat"}
_SPLITS = {"chunk", "split", "tensor_split", "unbind"}
_SOFTMAXES = {"softmax", "log_softmax"}
_RESIZES = {"interpolate", "upsample"}


def function_rule(analysis: Analysis, node: Node) -> Known:
    """Return the features of the result of a function or method.

    Raises:
        UnknownError: the channels that it reads must be kept.
    """
    name = _name(node)
    if all(analysis.known[source] is None for source in node.inputs):
        return None
    if name in _CONCATENATIONS:
        return _concatenated(analysis, node)
    if name in _ARITHMETIC:
        return _arithmetic(analysis, node, _ARITHMETIC[name])
    if name in _TOGETHER and not any(map(analysis.counts, node.args)):
        sides = [side for side in node.args if analysis.is_tensor(side)]
        return _aligned(analysis, node, sides)[0].varying()
    if name in _VIEWS:
        return viewed(analysis, node)
    if name in _SPLITS:
        return split(analysis, node, name)
    if name in ("matmul", "bmm"):
        return multiplied(analysis, node)
    if name == "scaled_dot_product_attention":
        return attended(analysis, node)
    return _of_one(analysis, node, name)


def _of_one(analysis: Analysis, node: Node, name: str) -> Known:
    """Return the features of a function of one tensor, whose options do not concern channels."""
    first = node.args[0] if node.args else None
    parts = analysis.known.get(first) if isinstance(first, Node) else None
    if name == "getitem" and isinstance(parts, list):
        part: Features = parts[node.args[1]]
        return part
    source = analysis.features(first)
    others = [other for other in node.inputs if other is not first]
    if source is None or (name != "type_as" and any(map(analysis.is_tensor, others))):
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
    if name in _SOFTMAXES:
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        if isinstance(dim, int) and dim % value.dim() != source.axis:
            return source.varying()
    if name == "pad":
        return padded(analysis, node, source)
    if name in _RESIZES and source.axis < 2:
        return source.varying()
    apply = called_on(analysis, node)
    if name in _ELEMENTWISE:
        if any(map(_is_tensor, (*node.args[1:], *node.kwargs.values()))):
            raise UnknownError(f"no rule for {name} of two tensors")
        constant = torch.where(source.constant.isnan(), torch.nan, apply(source.constant.clone()))
        return Features(source.axis, source.ids, constant)
    if name == "sum":
        mean = Tensor.mean
        args, kwargs = mapped(node.args[1:], analysis.value), mapped(node.kwargs, analysis.value)
        return relabelled(source.varying(), value, lambda x: mean(x, *args, **kwargs))
    if name in _MOVES or name in _MEANS or (name == "squeeze" and len(node.args) > 1):
        return relabelled(source, value, apply)
    if name == "getitem":
        moved = relabelled(source, value, apply)
        if _is_plain(node.args[1]) and torch.equal(moved.ids, source.ids):
            return moved
    raise UnknownError(f"no rule for {name}")


def _concatenated(analysis: Analysis, node: Node) -> Features:
    parts = node.args[0]
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    if not isinstance(parts, list | tuple) or not isinstance(dim, int):
        raise UnknownError("a concatenation along what cannot be told")
    parts = [part for part in parts if tuple(analysis.value(part).shape) != (0,)]  # left out
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


def _arithmetic(analysis: Analysis, node: Node, operate: Callable[[Any, Any], Any]) -> Features:
    if node.kwargs or len(node.args) != 2:
        raise UnknownError(f"{_name(node)} with options")
    if not all(analysis.is_tensor(side) for side in node.args):
        return _with_number(analysis, node, operate)
    full, constants = _aligned(analysis, node, node.args)
    constant = operate(*constants)
    if operate is operator.mul:  # zero times anything is zero
        constant = torch.where((constants[0] == 0) | (constants[1] == 0), 0.0, constant)
    return Features(full.axis, full.ids, constant)


def _aligned(analysis: Analysis, node: Node, sides: Sequence[Any]) -> tuple[Features, list[Tensor]]:
    """Join the features of tensors that are broadcast together.

    Returns:
        The features of the result, and the constants of each tensor.
    """
    total: Tensor = analysis.value(node)
    # Axes are counted from the last, as in broadcasting.
    axes = set()
    for side in sides:
        known, value = analysis.features(side), analysis.value(side)
        if known is not None and value.shape[known.axis] > 1:
            axes.add(known.axis - value.dim())
    if len(axes) != 1:
        raise UnknownError(f"{_name(node)} of different layouts")
    (axis,) = axes
    constants: list[Tensor] = []
    full: list[Features] = []
    for side in sides:
        value = analysis.value(side)
        if value.dim() >= -axis and value.shape[axis] > 1:
            known = analysis.whole(side, value.dim() + axis)
            full.append(known)
            constants.append(known.constant)
        else:  # one number for all channels
            known = analysis.features(side)
            if known is not None:
                analysis.channels.pin(known.ids, "they are combined with one number for all")
            constants.append(torch.full((total.shape[axis],), torch.nan, dtype=torch.float64))
    for other in full[1:]:
        analysis.channels.join(full[0].ids, other.ids)
    return Features(total.dim() + axis, full[0].ids, constants[0]), constants


def _with_number(analysis: Analysis, node: Node, operate: Callable[[Any, Any], Any]) -> Features:
    left, right = node.args
    tensor, number = (left, right) if analysis.is_tensor(left) else (right, left)
    source = analysis.features(tensor)
    if source is None or analysis.counts(number):
        raise UnknownError("a computation with the number of channels")
    if origins_of(number):  # it varies with the shape of the input
        zero = (source.constant == 0) & (tensor is left)
        if operate not in (operator.mul, operator.truediv):
            zero = torch.zeros_like(zero)
        constant = torch.full_like(source.constant, torch.nan).masked_fill(zero, 0.0)
        return Features(source.axis, source.ids, constant)
    constant = operate(*(source.constant if side is tensor else side for side in node.args))
    return Features(source.axis, source.ids, constant)


def _is_plain(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is ... or isinstance(part, int | slice) for part in parts)


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor | Node)


def _name(node: Node) -> str:
    """Return the name of a function; with its module if it is not torch's."""
    home = getattr(node.target, "__module__", None) or "torch"
    if home.split(".")[0] not in ("torch", "_operator", "builtins", "math"):
        return f"{home}.{node.name}"
    return node.name
