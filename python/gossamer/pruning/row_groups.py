"""group_hidden(): hidden neurons in an order in which rows that share columns want the same ones.

A hidden neuron is a row of one layer, or of several that are multiplied, and a column of the next.
Its number means nothing, so rows and columns may be put into another order: the function stays the
same, and no output is gathered. That is done where a trace of the model shows that nothing else
sees the neurons, or where the user says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.arguments import check
from gossamer.errors import PatternError
from gossamer.masks import group_rows
from gossamer.nn import MaskedLayer
from gossamer.patterns import Pattern, parse_pattern
from gossamer.pruning.calibration import called
from gossamer.pruning.comparing import copied, fresh
from gossamer.pruning.following import check_followable
from gossamer.pruning.trace import Node, Trace, mapped, trace

__all__ = ["group_hidden"]

_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardswish, nn.Identity, nn.Dropout),
)
_FUNCTIONS = {
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh"),
    *("sigmoid", "softplus", "hardswish", "square", "abs", "neg", "pow", "exp", "dropout"),
    *("add", "sub", "mul", "truediv", "clamp", "clamp_min", "contiguous", "float", "bfloat16"),
}

Pairs = Mapping[str, str | Sequence[str]]


def group_hidden(
    model: nn.Module, pattern: str | Pattern, example: Any = None, pairs: Pairs | None = None
) -> dict[str, Tensor]:
    """Group the hidden neurons of a dense model in place, for a pattern whose rows share columns.

    Call it before `sparsify` with the same pattern, and before the optimizer is built. Rows of the
    layers in front and columns of the layer behind are put into one order, by the magnitudes of the
    rows, see `gossamer.masks.group_rows`. What the model computes stays the same up to the order in
    which sums are rounded.

    Args:
        model: a model of `nn.Linear` layers.
        pattern: the pattern or its text, such as "2:4:v16".
        example: an input of the model, or a tuple of its inputs. The call is traced: layers are
            grouped between which there are elementwise functions alone, and whose neurons nothing
            else reads.
        pairs: instead of an example, the layers in front by the layer behind: `{"fc2": "fc1"}`, or
            `{"down": ["gate", "up"]}` for layers whose outputs are multiplied. You promise that
            nothing else reads their outputs.

    Returns:
        The order by the name of the layer behind: neuron i is the former `order[i]`.

    Raises:
        PatternError: neither or both of `example` and `pairs` were given; or layers of `pairs` are
            no `nn.Linear`, share their weights or do not fit each other or the pattern. The model
            does not change.
        ArgumentError: the model raises an error for the example.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> list(group_hidden(model, "2:4:v8", torch.randn(2, 8)))
        ['2']
    """
    check(group_hidden, locals())
    pattern = parse_pattern(pattern)
    if (example is None) == (pairs is None):
        raise PatternError(
            "group_hidden needs either example=, whose call it traces, or pairs=, which names the "
            "layers: give one of the two"
        )
    if pairs is not None:
        found = {b: [a] if isinstance(a, str) else list(a) for b, a in pairs.items()}
        for behind, front in found.items():
            if (problem := _misfit(model, behind, front, pattern)) is not None:
                raise PatternError(f"group_hidden got pairs={{{behind!r}: {front}}}: {problem}")
    else:
        check_followable(model, "group_hidden")
        inputs = example if isinstance(example, tuple) else (example,)
        still = copied(model).eval()
        traced: Trace = called(
            still, fresh(inputs), "group_hidden", lambda *given: trace(still, given)
        )
        found = {
            behind: front
            for behind, front in _pairs(traced).items()
            if _misfit(model, behind, front, pattern) is None
        }
    layers: dict[str, Any] = dict(model.named_modules())
    orders = {
        behind: group_rows(torch.cat([layers[f].weight.detach().abs() for f in front], 1), pattern)
        for behind, front in found.items()
    }
    with torch.no_grad():
        for behind, order in orders.items():
            for name in found[behind]:
                layer = layers[name]
                layer.weight.copy_(layer.weight[order])
                if layer.bias is not None:
                    layer.bias.copy_(layer.bias[order])
            layers[behind].weight.copy_(layers[behind].weight[:, order])
    return orders


def _misfit(model: nn.Module, behind: str, front: list[str], pattern: Pattern) -> str | None:
    """Return why the layers cannot be grouped, or None."""
    layers = dict(model.named_modules(remove_duplicate=False))
    names = [*front, behind]
    if missing := [name for name in names if name not in layers]:
        return f"the model has no layer {missing[0]!r}"
    own = [layers[name] for name in names]
    if not front or len({id(layer) for layer in own}) < len(own):
        return "a layer behind and other ones in front are needed"
    if any(type(layer) is not nn.Linear or isinstance(layer, MaskedLayer) for layer in own):
        return "all must be nn.Linear layers that are dense"
    held = [id(p) for m in layers.values() for p in m._parameters.values() if p is not None]
    params = [id(p) for layer in own for p in layer._parameters.values() if p is not None]
    aliases = [id(layer) for layer in layers.values()]
    if any(held.count(p) > 1 for p in params) or any(aliases.count(id(m)) > 1 for m in own):
        return "they share a weight with another layer or have two names"
    hidden = own[-1].in_features
    if any(layer.out_features != hidden for layer in own[:-1]):
        return f"the layers in front must have {hidden} outputs"
    try:
        for layer in own[:-1]:
            pattern.check_shape(layer.out_features, layer.in_features, "group_hidden")
    except PatternError as error:
        return str(error)
    return None if pattern.tile[0] > 1 else f"rows of pattern {pattern} share no columns"


def _pairs(traced: Trace) -> dict[str, list[str]]:
    """Return the layers in front by the layer behind, where nothing else sees the neurons."""
    users: dict[Node, list[Node]] = {}
    for node in traced.nodes:
        for given in node.inputs:
            users.setdefault(given, []).append(node)
    shown: list[Node] = []
    mapped(traced.output, lambda leaf: shown.append(leaf) if isinstance(leaf, Node) else None)
    calls = [node.module for node in traced.nodes if node.module is not None]
    pairs = {}
    for last in traced.nodes:
        if not _is_layer(traced, last, calls):
            continue
        inside, front = _between(traced, last, calls)
        seen = {*inside, *front, last}
        alone = all(set(users.get(node, ())) <= seen for node in (*inside, *front))
        quiet = not (set(shown) | set(traced.changed)) & {*inside, *front}
        if front and alone and quiet:
            pairs[str(last.module)] = [str(node.module) for node in front]
    return pairs


def _between(traced: Trace, last: Node, calls: list[str]) -> tuple[list[Node], list[Node]]:
    """Return the elementwise operations in front of a layer, and the layers in front of them."""
    inside: list[Node] = []
    front: list[Node] = []
    waiting = list(last.inputs)
    while waiting:
        node = waiting.pop()
        if node in inside or node in front:
            continue
        if _is_layer(traced, node, calls):
            front.append(node)
        elif _is_elementwise(traced, node):
            inside.append(node)
            waiting += node.inputs
        else:
            return [], []
    front.sort(key=traced.nodes.index)
    return inside, front


def _is_layer(traced: Trace, node: Node, calls: list[str]) -> bool:
    """Whether a node is the only call of a linear layer that nothing else reads."""
    layer = node.target
    if node.module is None or type(layer) is not nn.Linear or len(node.args) != 1:
        return False
    read = any(id(p) in traced.read for p in layer.parameters())
    once = calls.count(node.module) == 1 and node.module not in traced.opaque
    return once and not read and not _decided(traced, node)


def _is_elementwise(traced: Trace, node: Node) -> bool:
    if _decided(traced, node) or not isinstance(traced.values[node], Tensor):
        return False
    if node.module is not None:
        known = type(node.target) in _MODULES and node.module not in traced.opaque
    else:
        known = node.name in _FUNCTIONS
    # Operands of one number have no features; tensors from elsewhere do.
    rest: list[Any] = []
    mapped((node.args, node.kwargs), rest.append)
    others = [leaf for leaf in rest if isinstance(leaf, Tensor)]
    shape = traced.values[node].shape
    same = all(getattr(traced.values[given], "shape", None) == shape for given in node.inputs)
    return known and same and all(math.prod(leaf.shape) == 1 for leaf in others)


def _decided(traced: Trace, node: Node) -> bool:
    """Whether the forward around a node depends on values of the data."""
    scopes = f"{node.scope}."
    return any(not scope or scopes.startswith(f"{scope}.") for scope in traced.decided)
