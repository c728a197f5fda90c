"""Rules for modules: which channels a layer makes, which it passes on, and their constants.

Constants are computed in float64; for an elementwise module, by a call of the module itself.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from gossamer.nn import MaskedLayer
from gossamer.pruning.analysis import Analysis, Known, UnknownError
from gossamer.pruning.channels import Channelwise, Features, Mixing
from gossamer.pruning.moves import relabelled

_CONVS = (nn.Conv1d, nn.Conv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_WEIGHTED = (nn.Linear, *_CONVS, *_NORMS, nn.PReLU)
_NEEDS_ALL = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.Softmax, nn.LogSoftmax)
_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish),
    *(nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold),
)
_SAME = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
)


def module_rule(analysis: Analysis, node: fx.Node) -> Known:
    """Return the features of a module's result.

    Raises:
        UnknownError: the channels that it reads must be kept.
    """
    name = str(node.target)
    module = analysis.traced.root.get_submodule(name)
    if name in analysis.traced.opaque:
        raise UnknownError(analysis.traced.opaque[name])
    if name in analysis.traced.heads:
        raise UnknownError("")  # it needs all features; dead heads are removed separately
    if isinstance(module, MaskedLayer):
        raise UnknownError(f"a {type(module).__name__} keeps its pattern, and with it its features")
    kind = type(module)  # a subclass may compute something else
    if len(node.args) != 1 or node.kwargs or not analysis.is_tensor(node.args[0]):
        raise UnknownError(f"{kind.__name__} of more than one tensor")
    if kind in _WEIGHTED:
        if name in analysis.frozen:
            raise UnknownError(analysis.frozen[name])
        return _weighted(analysis, node, module)
    if kind in _NEEDS_ALL:
        raise UnknownError(f"a {kind.__name__} takes sums over its features: none can be left out")
    source = analysis.features(node.args[0])
    if source is None or kind in _SAME:
        return source
    if kind in _ELEMENTWISE:
        return Features(source.axis, source.ids, elementwise(module, source.constant))
    if kind in _POOLS:
        return pooled(source, analysis.value(node), kind.__name__, vars(module))
    if kind is nn.Flatten:
        return relabelled(source, analysis.value(node.args[0]), module)
    raise UnknownError(f"no rule for {kind.__name__}")


def elementwise(module: nn.Module, constant: Tensor) -> Tensor:
    """Return the output of an elementwise module for constants, float64 [channels]."""
    with torch.no_grad():
        value: Tensor = copy.deepcopy(module).cpu().double()(constant.clone())
    return torch.where(constant.isnan(), torch.nan, value)


def pooled(source: Features, result: Any, name: str, settings: dict[str, Any]) -> Features:
    """Return the features of a pool over positions.

    Args:
        source: features of the input.
        result: result on the example input.
        name: name of the class or function.
        settings: options by name.
    """
    spatial = 2 if "2d" in name else 1
    if not isinstance(result, Tensor) or source.axis != result.dim() - spatial - 1:
        raise UnknownError("a pool over features")
    constant = source.constant
    padding = settings.get("padding", 0)
    padded = any(padding) if isinstance(padding, tuple | list) else bool(padding)
    if "avg" in name.lower() and (padded or settings.get("divisor_override")):
        constant = torch.where(constant == 0, constant, torch.nan)
    return Features(source.axis, source.ids, constant)


def _weighted(analysis: Analysis, node: fx.Node, module: nn.Module) -> Features:
    rank = analysis.value(node).dim()
    if isinstance(module, nn.Linear):
        return _mixing(analysis, node, module, rank - 1)
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        axis = rank - len(module.kernel_size) - 1
        if module.groups == 1:
            return _mixing(analysis, node, module, axis)
        if module.groups == module.in_channels:
            return _depthwise(analysis, node, module, axis)
        raise UnknownError("a convolution in groups of several channels")
    return _per_channel(analysis, node, module)


def _mixing(
    analysis: Analysis, node: fx.Node, module: nn.Linear | nn.Conv1d | nn.Conv2d, axis: int
) -> Features:
    source = analysis.whole(node.args[0], axis)
    weight = module.weight.detach().cpu().flatten(2) if module.weight.dim() > 2 else None
    taps = module.weight.detach().cpu()[:, :, None] if weight is None else weight
    reads = (taps != 0).any(2)
    foldable = foldable_constants(module, source.constant)
    steady = ~(reads & ~foldable).any(1)
    used = (foldable & (source.constant != 0)).nonzero().flatten()
    value = taps[:, used].double().sum(2) @ source.constant[used]
    if module.bias is not None:
        value = value + module.bias.detach().cpu().double()
    out = analysis.channels.fresh(len(reads))
    analysis.layers.append(Mixing(str(node.target), reads, source, foldable, out))
    return Features(axis, out, torch.where(steady, value, torch.nan))


def foldable_constants(module: nn.Module, constant: Tensor) -> Tensor:
    """Return which constant inputs act on a layer like a bias, bool [inputs].

    With zero padding they do not: the border of a convolution reads zeros, not the constant.
    """
    foldable = ~constant.isnan()
    if _pads_with_zeros(module):
        foldable &= constant == 0
    return foldable


def _pads_with_zeros(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv1d | nn.Conv2d) or module.padding_mode != "zeros":
        return False
    if isinstance(module.padding, str):
        return module.padding != "valid"
    return any(module.padding)


def _depthwise(
    analysis: Analysis, node: fx.Node, module: nn.Conv1d | nn.Conv2d, axis: int
) -> Features:
    source = analysis.whole(node.args[0], axis)
    each = module.out_channels // module.in_channels
    ids = source.ids.repeat_interleave(each)
    steady = foldable_constants(module, source.constant)
    given = torch.where(steady, source.constant, torch.nan).repeat_interleave(each)
    taps = module.weight.detach().cpu().double().flatten(1)
    value = torch.where((taps != 0).any(1), taps.sum(1) * given, 0.0)
    if module.bias is not None:
        value = value + module.bias.detach().cpu().double()
    analysis.layers.append(Channelwise(str(node.target), source.ids, ids))
    return Features(axis, ids, value)


def _per_channel(analysis: Analysis, node: fx.Node, module: nn.Module) -> Features:
    """Return the features of BatchNorm in evaluation, or of PReLU, along axis 1."""
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        source = analysis.features(node.args[0])
        if source is None:
            raise UnknownError("")
        return Features(source.axis, source.ids, elementwise(module, source.constant))
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is None:
        raise UnknownError("a BatchNorm without running statistics")
    if analysis.value(node).dim() < 2:
        raise UnknownError("a tensor without a batch axis")
    source = analysis.whole(node.args[0], 1)
    places = 2 if isinstance(module, nn.BatchNorm2d) else 1
    value = elementwise(module, source.constant.view(1, -1, *[1] * places)).flatten()
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
        silent = module.weight.detach().cpu() == 0
        value = torch.where(silent, module.bias.detach().cpu().double(), value)
    analysis.layers.append(Channelwise(str(node.target), source.ids, source.ids))
    return Features(1, source.ids, value)
