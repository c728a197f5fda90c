"""become(): a layer takes the class and the members of another, and stays the same object.

So whatever holds the layer keeps holding it: lists, dataclasses and partials of other modules,
hooks of every kind, what libraries have set on it. torch does the same to lazy and parametrized
modules. What cannot be carried over is refused by name before anything changes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod

from gossamer.errors import PatternError
from gossamer.nn.layers.activation_sparse import ActivationSparseFFN
from gossamer.nn.layers.base import MaskedLayer
from gossamer.nn.layers.convolution import KINDS as CONVOLUTIONS
from gossamer.nn.layers.holders import holder_of
from gossamer.nn.layers.linear import is_conv1d, is_pruned
from gossamer.nn.layers.origin import Absorbed
from gossamer.nn.layers.parameter import SparseParameter
from gossamer.nn.layers.rebuilding import MADE_BY
from gossamer.weight import SparseWeight
from gossamer.weight.sharding import class_of

_CONTAINERS = ("_parameters", "_buffers", "_modules")
_DENSE = (nn.Linear, *(convolution.dense for convolution in CONVOLUTIONS))
_REPLACED = (
    ActivationSparseFFN,
    Absorbed,
    SparseParameter,
)  # they keep what they replace, to put it back


def in_place(old: Any, new: Any) -> bool:
    """Return whether `old` becomes `new`; otherwise `new` is put where `old` is registered."""
    if isinstance(old, nn.Parameter) or isinstance(new, nn.Parameter):
        return False
    others = isinstance(old, _REPLACED) or isinstance(new, _REPLACED)
    sharded = class_of(old) is not type(old)
    return not (others or sharded or any(part is old for part in new.modules()))


def placed(new: Mapping[Any, nn.Module]) -> list[nn.Module]:
    """Return the modules that a model has after a swap of old modules for new ones."""
    return [old if in_place(old, layer) else layer for old, layer in new.items()]


def check_swap(model: nn.Module, layers: Mapping[int, nn.Module]) -> None:
    """Check that a swap loses nothing; new layers by the ids of the old ones.

    Raises:
        PatternError: something cannot be carried over.
    """
    names: dict[int, tuple[str, Any]] = {}
    for name, module in model.named_modules():
        names[id(module)] = (name, module)
        for own, parameter in module.named_parameters(name, recurse=False):
            names.setdefault(id(parameter), (own, parameter))
    replaced: dict[int, str] = {}
    for key, new in layers.items():
        name, old = names.get(key, ("", None))
        if old is None or old is new:
            continue
        label = f"layer {name!r}" if name else "the model"
        if isinstance(old, nn.Parameter):
            label = f"parameter {name!r}"
            _check_hooks(old, label)
        if in_place(old, new):
            _check_become(old, new, label)
        else:
            replaced[key] = label
    held = [names[key][1] for key in replaced]
    if held and (found := holder_of(model, held, [*layers.values()])) is not None:
        raise PatternError(
            f"{replaced[id(found[0])]} is also held by {found[1]}, which would go on to use it: "
            "hold it in an nn.ModuleList or nn.ParameterList, or exclude it (exclude=...)"
        )


def become(old: nn.Module, new: nn.Module) -> None:
    """Give a layer the class and members of another; hooks and whatever users added stay."""
    own = own_names(old)
    _carry_tags(old, new)
    new.train(old.training)
    plain = vars(nn.Module())
    state = {name: value for name, value in vars(new).items() if name not in plain}
    for name, value in vars(old).items():
        if name in plain and name not in _CONTAINERS:
            state[name] = value
        elif name not in own and name not in plain and name != MADE_BY:
            state[name] = _rebound(value, old, type(new))
    for name in _CONTAINERS:
        added = {n: v for n, v in vars(old)[name].items() if n not in own}
        state[name] = {**vars(new)[name], **added}
    state["_non_persistent_buffers_set"] = {
        *new._non_persistent_buffers_set,
        *(old._non_persistent_buffers_set - own),
    }
    if is_pruned(old):
        _drop_pruning(state)
    vars(old).clear()
    old.__class__ = type(new)
    old.__setstate__(state)  # type: ignore[no-untyped-call]  # as a copy does


def put(parent: nn.Module, name: str, new: nn.Module | nn.Parameter) -> None:
    """Put a module in the place of a parameter or a module, or a parameter in that of a module."""
    if isinstance(new, nn.Parameter):
        old: Any = parent._modules.pop(name)
        parent._parameters[name] = new
        first = [own for own in old.order if own in parent._parameters]
        for own in [*first, *(own for own in parent._parameters if own not in first)]:
            parent._parameters[own] = parent._parameters.pop(own)
    elif name in parent._parameters:
        was = parent._parameters[name]
        others = [m for m in parent._modules.values() if isinstance(m, SparseParameter)]
        order = others[0].order if others else (*parent._parameters,)
        del parent._parameters[name]
        if isinstance(new, SparseParameter):
            new.order = new.order or order
            for entries in (layer.entries for layer in new.children()):
                vars(entries).update(vars(was))
        parent._modules[name] = new
    else:
        parent._modules[name] = new
    if isinstance(parent, nn.RNNBase):
        parent._init_flat_weights()


def own_names(module: nn.Module) -> frozenset[str]:
    """Return the names of what a layer's class has set on it; the others were added by users."""
    kind: Any = type(module)
    if is_conv1d(module):
        own = frozenset([*vars(nn.Module()), "nf", "nx", "weight", "bias"])
    elif kind in _DENSE or (issubclass(kind, MaskedLayer) and hasattr(kind, "from_dense")):
        own = _names_of(kind)
    else:  # several layers in the place of one
        own = _names_in(module)
    return own | {"weight_orig", "weight_mask"} if is_pruned(module) else own


def _names_in(module: nn.Module) -> frozenset[str]:
    return frozenset(
        [*vars(module), *(name for kind in _CONTAINERS for name in vars(module)[kind])]
    )


@functools.cache
def _names_of(kind: Any) -> frozenset[str]:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        dense: Any = getattr(kind, "dense", nn.Linear) if issubclass(kind, MaskedLayer) else kind
        layer = nn.Linear(16, 16) if dense is nn.Linear else dense(4, 8, 1)
        layer = layer.float()
        return _names_in(layer if dense is kind else kind.from_dense(layer, "2:4"))


def _check_hooks(parameter: nn.Parameter, label: str) -> None:
    if _has_hooks(parameter):
        raise PatternError(
            f"{label} has a gradient hook, whose gradient has another shape afterwards: remove the "
            "hook and set it after this call, or exclude the parameter (exclude=...)"
        )


def _check_become(old: nn.Module, new: nn.Module, label: str) -> None:
    kind, own = type(new), own_names(old)
    methods = {n: v for n, v in vars(old).items() if _is_method(v, old)}
    replaced = vars(old).get("forward")
    wrapped = any(v.__name__ == "forward" for n, v in methods.items() if n != "forward")
    if replaced is not None and "forward" not in methods and not wrapped:
        raise PatternError(
            f"{label} has a forward of its own, set on the object, which may not know of a mask: "
            "set it after this call, or exclude the layer (exclude=...)"
        )
    for name, value in methods.items():
        if not callable(getattr(kind, value.__name__, None)):
            raise PatternError(
                f"{label} has the attribute {name!r}, a method of {type(old).__name__} that "
                f"{kind.__name__} lacks: delete it, or exclude the layer (exclude=...)"
            )
    kept = {id(parameter) for parameter in new.parameters()}
    for name, parameter in old.named_parameters():
        if name.partition(".")[0] in own and id(parameter) not in kept and _has_hooks(parameter):
            raise PatternError(
                f"{label} has a gradient hook on {name}, whose gradient has another shape "
                "afterwards: remove the hook and set it after this call, or exclude the layer "
                "(exclude=...)"
            )
    clash = [
        name
        for name in _added(old, own)
        if name in own_names(new) or (hasattr(kind, name) and not hasattr(type(old), name))
    ]
    if clash:
        raise PatternError(
            f"{label} has {clash[0]!r} set on it, which {kind.__name__} uses itself: rename it, or "
            "exclude the layer (exclude=...)"
        )


def _added(module: nn.Module, own: frozenset[str]) -> Iterator[str]:
    """Yield the names of what users have added to a layer."""
    for name in vars(module):
        if name not in own and name != MADE_BY:
            yield name
    for kind in _CONTAINERS:
        yield from (name for name in vars(module)[kind] if name not in own)


def _is_method(value: object, module: nn.Module) -> bool:
    """Return whether a value is a method of a module's class, bound to the module."""
    if not isinstance(value, MethodType) or value.__self__ is not module:
        return False
    return inspect.getattr_static(type(module), value.__name__, None) is value.__func__


def _rebound(value: Any, module: nn.Module, kind: type[nn.Module]) -> Any:
    """Return the method of the new class for one of the old, as `_old_forward` of accelerate."""
    if not _is_method(value, module):
        return value
    return MethodType(getattr(kind, value.__name__), module)


def _has_hooks(parameter: nn.Parameter) -> bool:
    after: Any = getattr(parameter, "_post_accumulate_grad_hooks", None)
    return bool(parameter._backward_hooks) or bool(after)


def _carry_tags(old: nn.Module, new: nn.Module) -> None:
    """Give the attributes of each parameter that goes to those that come in its place."""
    own = own_names(old)
    theirs = {id(parameter) for parameter in old.parameters()}
    kept = {id(parameter) for parameter in new.parameters()}
    fresh = {name: p for name, p in new.named_parameters() if id(p) not in theirs}
    for name, parameter in old.named_parameters():
        if id(parameter) in kept or name.partition(".")[0] not in own:
            continue
        same = [fresh[name]] if name in fresh else []
        others = [p for other, p in fresh.items() if other != "bias"] if name != "bias" else []
        for new_one in same or others:
            tags = {n: v for n, v in vars(parameter).items() if n not in vars(new_one)}
            vars(new_one).update(tags)
    for module in new.modules():
        if isinstance(module, SparseWeight):  # what asks the weight finds them too
            for tag, value in vars(module.values).items():
                if not hasattr(module, tag):
                    vars(module)[tag] = value


def _drop_pruning(state: dict[str, Any]) -> None:
    """Remove the hooks by which torch.nn.utils.prune computes a weight."""
    hooks = state["_forward_pre_hooks"]
    for key in [k for k, hook in hooks.items() if isinstance(hook, BasePruningMethod)]:
        del hooks[key]
        state["_forward_pre_hooks_with_kwargs"].pop(key, None)


__all__ = ["become", "check_swap", "in_place", "own_names", "placed"]
