"""The operations of one call of a model, each with its arguments and its result.

The model runs as it is on the example; what it calls is written down: torch's layers through hooks,
all other operations through a torch function mode. So any forward can be followed, for the branches
that the example takes. Operations on the inputs alone are not written down.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gossamer.nested import tensors
from gossamer.nn import MaskedLayer
from gossamer.nn.layers.linear import is_conv1d
from gossamer.pruning.attention import FusedHeads, recognise
from gossamer.pruning.experts import is_experts
from gossamer.pruning.sizes import sized

# Queries whose answer does not depend on features, or is handled as a size.
_PLAIN = {
    *("dtype", "device", "ndim", "dim", "ndimension", "is_cuda", "is_cpu", "is_meta", "layout"),
    *("requires_grad", "is_floating_point", "is_complex", "is_contiguous", "stride", "is_leaf"),
    *("storage_offset", "data_ptr", "element_size", "get_device", "is_nested", "is_sparse", "grad"),
    *("is_quantized", "is_mps", "is_xpu", "is_inference", "_version", "names", "requires_grad_"),
    *("grad_fn", "retain_grad", "__repr__", "__format__", "is_mkldnn", "itemsize", "nbytes"),
}
_DECIDES = {
    *("__bool__", "__int__", "__float__", "__index__", "__contains__", "item", "tolist", "numpy"),
    *("equal", "allclose", "is_nonzero", "__array__"),
}
# Methods of operators, and whether their sides are swapped.
_OPERATORS: dict[str, tuple[Any, bool]] = {
    "getitem": (operator.getitem, False),
    "rsub": (operator.sub, True),
    "rdiv": (operator.truediv, True),
    "rtruediv": (operator.truediv, True),
}
for _name in ("add", "sub", "mul", "truediv", "matmul"):
    _OPERATORS[_name] = (getattr(operator, _name), False)
for _name in ("radd", "rmul"):
    _OPERATORS[_name] = (getattr(operator, _name[1:]), True)
for _name in ("iadd", "isub", "imul", "itruediv"):
    _OPERATORS[_name] = (getattr(operator, _name[1:]), False)


class Node:
    """One operation.

    Attributes:
        module: name of the called module; None for a function.
        target: the called module or function.
        name: name of the function without the mark of an in-place one, or of the module's class.
        args: positional arguments, with a `Node` in place of each result of another operation.
        kwargs: named arguments, likewise.
        scope: name of the module whose forward contains the call.
        inputs: the nodes in its arguments.
    """

    def __init__(
        self, module: str | None, target: Any, args: Any, kwargs: Any, scope: str, name: str
    ) -> None:
        self.module, self.target, self.name = module, target, name
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs
        self.scope = scope
        self.inputs = list(dict.fromkeys(_nodes((args, kwargs))))

    def __repr__(self) -> str:
        return f"Node({self.module or self.name} in {self.scope!r})"


class Trace(NamedTuple):
    """What a model has called.

    Attributes:
        root: the model, in evaluation mode.
        nodes: the operations, in execution order.
        values: result of each node on the example input.
        output: what the model returns, with a `Node` in place of each result.
        opaque: modules that are one node because they have hooks, with the reason.
        heads: attention modules that are one node because they were recognised.
        changed: tensors that a node overwrote.
        read: ids of the parameters and buffers that are read outside their own layer.
        decided: scopes whose forward depends on the values of a result, with the reason.
        branched: scopes whose forward depends on the values of the inputs alone.
    """

    root: nn.Module
    nodes: list[Node]
    values: dict[Node, Any]
    output: Any
    opaque: dict[str, str]
    heads: dict[str, FusedHeads]
    changed: dict[Node, list[Tensor]]
    read: set[int]
    decided: dict[str, str]
    branched: dict[str, None]


def trace(model: nn.Module, inputs: Sequence[Any]) -> Trace:
    """Call a throw-away copy of a model, and return what it calls.

    Args:
        model: a copy in evaluation mode that has no other use.
        inputs: positional arguments of the forward pass.

    Returns:
        The operations. The values are kept as long as the trace.

    Raises:
        Exception: whatever the model raises.
    """
    recorder = _Recorder(model, inputs)
    try:
        with torch.no_grad(), recorder:
            output = model(*inputs)
    finally:
        recorder.remove()
    return Trace(
        model,
        recorder.recorded,
        recorder.values,
        recorder.linked(output),
        recorder.opaque,
        recorder.heads,
        recorder.changed,
        recorder.read,
        recorder.decided,
        recorder.branched,
    )


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """Replace the leaves of nested tuples, lists, dicts, slices and dataclasses (as dicts)."""
    if isinstance(value, tuple):
        parts = [mapped(part, function) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [mapped(part, function) for part in value]
    if isinstance(value, dict):
        return {key: mapped(part, function) for key, part in value.items()}
    if isinstance(value, slice):
        return slice(*(mapped(part, function) for part in (value.start, value.stop, value.step)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: mapped(getattr(value, field.name), function) for field in fields(value)}
    return function(value)


def has_hooks(module: nn.Module) -> bool:
    """Return whether the module has hooks, so that a call does more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def is_leaf(module: nn.Module) -> bool:
    """Return whether a module is one operation: torch's layers and others that have rules."""
    if isinstance(module, MaskedLayer) or is_conv1d(module) or is_experts(module):
        return True
    home = type(module).__module__
    if home.startswith("gossamer.nn."):
        return True
    return home.startswith(("torch.nn", "torch.ao.nn")) and not isinstance(module, _CONTAINERS)


_CONTAINERS = (
    *(nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Transformer, nn.TransformerEncoder),
    *(nn.TransformerDecoder, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
    *(nn.DataParallel, nn.parallel.DistributedDataParallel),
)


class _Recorder(TorchFunctionMode):
    """Writes down the calls of a model, from its hooks and as a torch function mode."""

    def __init__(self, model: nn.Module, inputs: Sequence[Any]) -> None:
        super().__init__()
        self.recorded: list[Node] = []
        self.values: dict[Node, Any] = {}
        self.opaque: dict[str, str] = {}
        self.heads: dict[str, FusedHeads] = {}
        self.changed: dict[Node, list[Tensor]] = {}
        self.read: set[int] = set()
        self.decided: dict[str, str] = {}
        self.branched: dict[str, None] = {}
        self._given = {id(tensor): tensor for tensor in tensors(inputs)}  # and what is made of them
        self._nodes: dict[int, Node] = {}  # by id of the tensor, which `values` keeps alive
        self._path: list[str] = []
        self._leaf: tuple[nn.Module, Any] | None = None  # the leaf that is running
        self._paused = False
        self._own = {id(t) for t in (*model.parameters(), *model.buffers())}
        self._hooked = {n for n, m in model.named_modules() if n and has_hooks(m)}
        self._handles: list[Any] = []
        for name, module in model.named_modules():
            self._follow(module, name)

    def remove(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()

    def linked(self, value: Any) -> Any:
        """Replace each recorded tensor in nested containers by its node."""

        def link(leaf: Any) -> Any:
            return self._nodes.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf

        return mapped(value, link)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._leaf is not None or self._paused:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            name = func.__self__.__name__
        if name in ("shape", "size", "__len__", "numel", "nelement"):
            return self._sizes(name, func(*args, **kwargs), args, kwargs)
        if name in _PLAIN or name == "__set__":
            return func(*args, **kwargs)
        if name == "__iter__":
            return iter(self.__torch_function__(Tensor.unbind, types, (args[0],)))
        given = list(tensors((args, kwargs)))
        self.read |= {id(tensor) for tensor in given} & self._own
        if not any(id(tensor) in self._nodes for tensor in given):
            result = func(*args, **kwargs)
            if any(id(tensor) in self._given for tensor in given):
                self._given |= {id(tensor): tensor for tensor in tensors(result)}
                if name in _DECIDES:
                    self.branched[self._path[-1]] = None
            return result
        if name in _DECIDES:
            self.decided[self._path[-1]] = f"it depends on values of the data ({name.strip('_')})"
            return func(*args, **kwargs)
        bare = name.strip("_") if name.startswith("__") else name.rstrip("_")
        target, swapped = _OPERATORS.get(bare, (func, False))
        given_args = (args[1], args[0], *args[2:]) if swapped else args
        linked = self.linked(given_args), self.linked(kwargs)
        versions = [(tensor, tensor._version) for tensor in given]
        result = func(*args, **kwargs)
        named = target.__name__ if bare in _OPERATORS else bare
        self._record(Node(None, target, *linked, self._path[-1], named), result, versions)
        return result

    def _sizes(self, name: str, result: Any, args: Any, kwargs: Any) -> Any:
        node = self._nodes.get(id(args[0]))
        if node is None:
            return result
        if isinstance(result, torch.Size):
            places = enumerate(result)
            return torch.Size([sized(n, frozenset({(node, i)}), True) for i, n in places])
        if name in ("numel", "nelement"):
            return sized(result, frozenset((node, i) for i in range(args[0].dim())))
        axis = 0 if name == "__len__" else kwargs.get("dim", args[1] if len(args) > 1 else 0)
        return sized(result, frozenset({(node, axis % args[0].dim())}), True)

    def _record(self, node: Node, result: Any, versions: list[tuple[Tensor, int]]) -> None:
        self.recorded.append(node)
        self.values[node] = result
        if changed := [tensor for tensor, version in versions if tensor._version != version]:
            self.changed[node] = changed
        if isinstance(result, Tensor):
            self._nodes[id(result)] = node
        elif isinstance(result, tuple | list):
            for i, part in enumerate(result):
                if isinstance(part, Tensor | tuple | list):
                    item = Node(None, operator.getitem, (node, i), {}, node.scope, "getitem")
                    self._record(item, part, [])

    def _follow(self, module: nn.Module, name: str) -> None:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._paused or self._leaf is not None:
                return
            scope = self._path[-1] if self._path else ""
            self._path.append(name)
            if not self._whole(module, name, args, kwargs):
                return
            given = list(tensors((args, kwargs)))
            node = Node(
                name, module, self.linked(args), self.linked(kwargs), scope, type(module).__name__
            )
            versions = [(tensor, tensor._version) for tensor in given]
            self._leaf = (module, (node, versions))

        def leave(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            if self._paused or (self._leaf is not None and self._leaf[0] is not module):
                return
            if self._leaf is not None:
                node, versions = self._leaf[1]
                self._leaf = None
                self._record(node, result, versions)
            self._path.pop()

        self._handles += [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave, with_kwargs=True),
        ]

    def _whole(self, module: nn.Module, name: str, args: Any, kwargs: Any) -> bool:
        """Return whether a module is one node."""
        if name in self._hooked:
            self.opaque[name] = "it has hooks, which a smaller module would call with other shapes"
        elif len(args) == 1 and not kwargs and name not in self.heads:
            self._paused = True
            try:
                heads = recognise(module, args[0])
            finally:
                self._paused = False
            if heads is not None:
                self.heads[name] = heads
        return name in self.opaque or name in self.heads or is_leaf(module)


def _nodes(value: Any) -> Iterator[Node]:
    if isinstance(value, Node):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _nodes(part)
    elif isinstance(value, dict):
        yield from _nodes(tuple(value.values()))
    elif isinstance(value, slice):
        yield from _nodes((value.start, value.stop, value.step))
