"""Rules for modules: which channels a layer makes, which it passes on, and their constants.

Constants are computed in float64; for an elementwise module, by a call of the module itself.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.nn import MaskedLayer
from gossamer.nn.layers.linear import is_conv1d
from gossamer.pruning.analysis import INSIDE, Analysis, Known, UnknownError
from gossamer.pruning.channels import Channelwise, Features, Mixing
from gossamer.pruning.experts import is_experts
from gossamer.pruning.moves import relabelled
from gossamer.pruning.multihead import can_lose_heads
from gossamer.pruning.trace import Node
from gossamer.pruning.units import ExpertUnits, FusedUnits, MultiheadUnits, Unit
from gossamer.pruning.weights import CONVS, NORMS, TRANSPOSED, Conv, oriented

_WEIGHTED = (nn.Linear, *CONVS, *TRANSPOSED, *NORMS, nn.PReLU)
_NEEDS_ALL = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.Softmax, nn.LogSoftmax)
_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish),
    *(nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold),
)
_SAME = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)


def module_rule(analysis: Analysis, node: Node) -> Known:
    """Return the features of a module's result.

    Raises:
        UnknownError: the channels that it reads must be kept.
    """
    name: str = node.module  # type: ignore[assignment]
    module: nn.Module = node.target
    if name in analysis.traced.opaque:
        raise UnknownError(analysis.traced.opaque[name])
    if (unit := _unit(analysis, node, module)) is not None:
        analysis.units.append((unit, analysis.channels.fresh(unit.count)))
        raise UnknownError("")  # it needs all features
    if isinstance(module, MaskedLayer):
        raise UnknownError(f"a {type(module).__name__} keeps its pattern, and with it its features")
    kind = type(module)  # a subclass may compute something else
    if len(node.args) != 1 or node.kwargs or not analysis.is_tensor(node.args[0]):
        raise UnknownError(f"{kind.__name__} of more than one tensor")
    if kind in _WEIGHTED or is_conv1d(module):
        if name in analysis.frozen:
            raise UnknownError(analysis.frozen[name])
        return _weighted(analysis, node, module)
    source = analysis.features(node.args[0])
    if source is None or kind in _SAME:
        return source
    if kind in _NEEDS_ALL:
        if source.axis not in _summed(module, analysis.value(node).dim()):
            return source.varying()
        raise UnknownError(f"a {kind.__name__} takes sums over its features: none can be left out")
    if kind in _ELEMENTWISE:
        return Features(source.axis, source.ids, elementwise(module, source.constant))
    if kind in _POOLS:
        return pooled(source, analysis.value(node), kind.__name__, vars(module))
    if kind is nn.Flatten:
        return relabelled(source, analysis.value(node.args[0]), module)
    raise UnknownError(f"no rule for {kind.__name__}")


def _unit(analysis: Analysis, node: Node, module: nn.Module) -> Unit | None:
    """Return the heads or the neurons of a module that holds them alone; None for others."""
    name: str = node.module  # type: ignore[assignment]
    heads = analysis.traced.heads.get(name)
    if heads is None and not can_lose_heads(module) and not is_experts(module):
        return None
    own = [n for n, _ in module.named_modules(prefix=name)]
    why = next((w for n in own if (w := analysis.frozen.get(n, INSIDE)) != INSIDE), None)
    if why is not None or not node.args:
        analysis.note(name, why or "it is called with named arguments only")
        return None
    x: Tensor = analysis.value(node.args[0])
    places = x.numel() // x.shape[-1]
    if heads is not None:
        return FusedUnits(name, module, heads, places)
    if isinstance(module, nn.MultiheadAttention):
        return MultiheadUnits(name, module, places)
    chosen = analysis.value(node.args[1]) if len(node.args) > 1 else None
    return ExpertUnits(name, module, chosen.numel() if isinstance(chosen, Tensor) else places)


def _summed(module: nn.Module, rank: int) -> set[int]:
    """Return the axes that a norm or a softmax takes sums over."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return set(range(rank - len(module.normalized_shape), rank))
    if isinstance(module, nn.Softmax | nn.LogSoftmax) and module.dim is not None:
        return {module.dim % rank}
    return set(range(rank))


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
    spatial = int(next((c for c in name if c.isdigit()), "1"))
    if not isinstance(result, Tensor) or source.axis != result.dim() - spatial - 1:
        raise UnknownError("a pool over features")
    constant = source.constant
    padding = settings.get("padding", 0)
    padded = any(padding) if isinstance(padding, tuple | list) else bool(padding)
    if "avg" in name.lower() and (padded or settings.get("divisor_override")):
        constant = torch.where(constant == 0, constant, torch.nan)
    return Features(source.axis, source.ids, constant)


def _weighted(analysis: Analysis, node: Node, module: nn.Module) -> Features:
    rank = analysis.value(node).dim()
    if isinstance(module, nn.Linear) or is_conv1d(module):
        return _mixing(analysis, node, module, rank - 1)
    if isinstance(module, (*CONVS, *TRANSPOSED)):
        axis = rank - len(module.kernel_size) - 1
        if module.groups == 1:
            return _mixing(analysis, node, module, axis)
        if isinstance(module, TRANSPOSED):
            raise UnknownError("a transposed convolution in groups")
        return _grouped(analysis, node, module, axis)
    return _per_channel(analysis, node, module)


def _mixing(analysis: Analysis, node: Node, module: nn.Module, axis: int) -> Features:
    source = analysis.whole(node.args[0], axis)
    weight = oriented(module).cpu()
    taps = weight.flatten(2) if weight.dim() > 2 else weight[:, :, None]
    reads = (taps != 0).any(2)
    foldable = foldable_constants(module, source.constant)
    steady = ~(reads & ~foldable).any(1)
    used = (foldable & (source.constant != 0)).nonzero().flatten()
    value = taps[:, used].double().sum(2) @ source.constant[used]
    if isinstance(module.bias, Tensor):
        value = value + module.bias.detach().cpu().double()
    out = analysis.channels.fresh(len(reads))
    held, inputs = analysis.value(node), analysis.value(node.args[0])
    places = (
        inputs.numel() // reads.shape[1]
        if type(module) in TRANSPOSED
        else held.numel() // len(reads)
    )
    layer = Mixing(str(node.module), reads, source, foldable, out, places * taps.shape[2])
    analysis.layers.append(layer)
    return Features(axis, out, torch.where(steady, value, torch.nan))


def foldable_constants(module: nn.Module, constant: Tensor) -> Tensor:
    """Return which constant inputs act on a layer like a bias, bool [inputs].

    With zero padding they do not: the border of a convolution reads zeros, not the constant. The
    border of a transposed convolution reads fewer entries.
    """
    foldable = ~constant.isnan()
    if type(module) in TRANSPOSED or _pads_with_zeros(module):
        foldable &= constant == 0
    return foldable


def _pads_with_zeros(module: nn.Module) -> bool:
    if not isinstance(module, CONVS) or module.padding_mode != "zeros":
        return False
    if isinstance(module.padding, str):
        return module.padding != "valid"
    return any(module.padding)


def _grouped(analysis: Analysis, node: Node, module: Conv, axis: int) -> Features:
    """Return the features of a convolution in groups; each group stays or goes as a whole."""
    source = analysis.whole(node.args[0], axis)
    groups, each = module.groups, module.out_channels // module.groups
    inputs = source.ids.view(groups, -1)
    for other in inputs.T[1:]:
        analysis.channels.join(inputs[:, 0], other)
    ids = inputs[:, 0].repeat_interleave(each)
    foldable = foldable_constants(module, source.constant)
    given = torch.where(foldable, source.constant, torch.nan).view(groups, 1, -1)
    taps = module.weight.detach().cpu().double().flatten(2)
    taps = taps.view(groups, each, inputs.shape[1], -1)
    parts = torch.where((taps != 0).any(3), taps.sum(3) * given, 0.0)
    value = parts.sum(2).flatten()
    if module.bias is not None:
        value = value + module.bias.detach().cpu().double()
    products = analysis.value(node).numel() // len(ids) * taps[0, 0].numel()
    analysis.layers.append(Channelwise(str(node.module), source.ids, ids, groups, products))
    return Features(axis, ids, value)


def _per_channel(analysis: Analysis, node: Node, module: nn.Module) -> Features:
    """Return the features of BatchNorm in evaluation, or of PReLU, along axis 1."""
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        source = analysis.features(node.args[0])
        if source is None:
            raise UnknownError("")
        return Features(source.axis, source.ids, elementwise(module, source.constant))
    if isinstance(module, NORMS) and module.running_mean is None:
        raise UnknownError("a BatchNorm without running statistics")
    if analysis.value(node).dim() < 2:
        raise UnknownError("a tensor without a batch axis")
    source = analysis.whole(node.args[0], 1)
    places = analysis.value(node).dim() - 2 if isinstance(module, NORMS) else 1
    value = elementwise(module, source.constant.view(1, -1, *[1] * places)).flatten()
    if isinstance(module, NORMS) and module.affine:
        silent = module.weight.detach().cpu() == 0
        value = torch.where(silent, module.bias.detach().cpu().double(), value)
    analysis.layers.append(Channelwise(str(node.module), source.ids, source.ids))
    return Features(1, source.ids, value)
