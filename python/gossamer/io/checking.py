"""check_state(): whether a state dict can be loaded, before anything changes.

The state is loaded into a twin of the model: the same modules, whose parameters have sizes and no
memory. So each module's own way of loading is asked, and the model is not touched.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gossamer.arguments import check
from gossamer.errors import CheckpointError, DTypeError, GossamerError
from gossamer.nn.foreign import is_config
from gossamer.nn.layers.origin import twin_of
from gossamer.weight.guard import Guard
from gossamer.weight.sharding import is_sharded

_SHOWN = 5
_HOOKS = ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")


def check_state(model: nn.Module, state: Mapping[str, Any], strict: bool = True) -> None:
    """Check that a model can load a state dict; nothing changes.

    `model.load_state_dict` of torch loads what fits and then raises, which leaves a model that is
    half loaded. A state that passes here is loaded whole. Names, shapes, dtypes and each structure
    are checked. A number of another floating dtype fits, as in torch; no other dtype is converted.

    Args:
        model: any module.
        state: tensors by name.
        strict: whether names that are missing or unknown are refused, as in torch.

    Raises:
        CheckpointError: names, shapes, or what is not a tensor.
        DTypeError: a dtype that does not fit.
        StructureError: a structure that is damaged, or of another pattern than the layer's.

    Example:
        >>> import gossamer
        >>> model = gossamer.SparseLinear(8, 4, pattern="2:4")
        >>> gossamer.check_state(model, model.state_dict())
        >>> gossamer.check_state(model, {"bias": torch.zeros(3)}, strict=False)
        Traceback (most recent call last):
        gossamer.errors.CheckpointError: ...size mismatch for bias...
    """
    check(check_state, locals())
    check_loading(twin_tree(model, {}), model.state_dict(keep_vars=True), state, strict)


def check_loading(
    twin: nn.Module, own: Mapping[str, Any], state: Mapping[str, Any], strict: bool
) -> None:
    """Check that a model can load a state dict, see `check_state`.

    Args:
        twin: the twin of the model, which is changed.
        own: the state dict of the model, whose dtypes are compared.
        state: tensors by name.
        strict: see `check_state`.
    """
    check_names(state)
    for name, tensor in state.items():
        if isinstance(tensor, Tensor):
            if is_sharded(own.get(name)) and not is_sharded(tensor):
                raise CheckpointError(
                    f"{name} of the model is sharded over processes, and the state has all of it: "
                    "load before fully_shard, or save and load by torch.distributed.checkpoint"
                )
            _check_tensor(name, tensor, own.get(name))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*to a meta parameter.*")  # which is the purpose
            result = twin.load_state_dict(state, strict=False)
    except GossamerError:
        raise
    except Exception as error:  # of whatever loads the modules of others
        raise CheckpointError(
            f"the state does not fit the model: {_first(str(error))}; build the model that was "
            "saved, or give another file"
        ) from error
    for what, names in (("lacks", result.missing_keys), ("has", result.unexpected_keys)):
        if strict and names:
            shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
            extra = ", which the model has not" if what == "has" else ""
            raise CheckpointError(
                f"the state {what} {shown}{extra}; build the model that was saved, or give the "
                "folder that gossamer.save has written, whose layers are built again"
            )


def check_names(state: Any) -> None:
    """Raise CheckpointError unless a state is a mapping by name."""
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(
            f"a {type(state).__name__} was given as state; a mapping of tensors by name is needed"
        )


def twin_tree(model: nn.Module, replaced: Mapping[Any, nn.Module]) -> nn.Module:
    """Return a copy of a tree of modules that has no memory and shares nothing that a load changes.

    Args:
        model: any module.
        replaced: modules by the modules or parameters in whose places the twin has them.
    """
    twins: dict[int, nn.Module] = {}
    tensors: dict[int, Any] = {}
    configs: dict[int, Any] = {}

    def blank(tensor: Tensor | None, persistent: bool) -> Any:
        if tensor is None:
            return None
        if id(tensor) not in tensors:
            tensors[id(tensor)] = _blank(tensor, persistent)
        return tensors[id(tensor)]

    def twin(module: nn.Module) -> nn.Module:
        module = replaced.get(module, module)
        if id(module) in twins:
            return twins[id(module)]
        found = twins[id(module)] = twin_of(module)
        for name, value in vars(module).items():
            if isinstance(value, Guard):
                found.__dict__[name] = copy.copy(value)
                found.__dict__[name].own(found)
            elif is_config(value):  # surgery writes to it
                configs.setdefault(id(value), copy.deepcopy(value))
                found.__dict__[name] = configs[id(value)]
        passing = module._non_persistent_buffers_set
        parts = found.__dict__
        own = {n: p for n, p in module._parameters.items() if p is None or p not in replaced}
        parts["_parameters"] = {n: blank(p, True) for n, p in own.items()}
        parts["_buffers"] = {n: blank(b, n not in passing) for n, b in module._buffers.items()}
        gone = {n: replaced[p] for n, p in module._parameters.items() if n not in own}
        inside = {**module._modules, **gone}
        parts["_modules"] = {n: m if m is None else twin(m) for n, m in inside.items()}
        return found

    root = twin(model)
    for found in twins.values():
        for name in _HOOKS:
            hooks = found.__dict__.get(name) or {}
            found.__dict__[name] = type(hooks)(
                (key, _rebound(hook, found, twins)) for key, hook in hooks.items()
            )
    return root


def _rebound(hook: Any, module: nn.Module, twins: Mapping[int, nn.Module]) -> Any:
    """Return the hook of a twin: one that is a method of the model acts on the twin."""
    inner = getattr(hook, "hook", hook)  # torch wraps it
    owner = twins.get(id(getattr(inner, "__self__", None)))
    if owner is not None:
        inner = MethodType(inner.__func__, owner)
    if inner is hook or not hasattr(hook, "with_module"):
        return inner
    return type(hook)(inner, module if hook.with_module else None)


def _blank(tensor: Tensor, persistent: bool) -> Any:
    if is_lazy(tensor):
        return type(tensor)(device="meta")  # type: ignore[call-arg]
    if persistent and not tensor.is_floating_point() and not tensor.is_meta:
        return tensor.detach().clone()  # a structure is checked by its bytes
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, tensor.requires_grad)
    return empty


def _check_tensor(name: str, tensor: Tensor, mine: Any) -> None:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        raise DTypeError(f"{name} of the state is {tensor.layout}; a dense tensor is needed")
    if not isinstance(mine, Tensor) or is_lazy(mine):
        return
    if tensor.is_meta and not mine.is_meta:
        raise CheckpointError(f"{name} of the state is on the meta device, without numbers")
    floats = tensor.is_floating_point() and mine.is_floating_point()
    if tensor.dtype != mine.dtype and not floats:
        raise DTypeError(
            f"{name} of the state is {tensor.dtype}, the model's is {mine.dtype}; give a state of "
            "the model's dtypes"
        )


def _first(text: str) -> str:
    """Return the part of torch's message that says what differs, on one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[1:3] if len(lines) > 1 else lines)[:500]


__all__ = ["check_loading", "check_names", "check_state", "twin_tree"]
