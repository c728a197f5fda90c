"""The operations of a model as a torch.fx graph, each with the value it has on the example input.

A branch that depends on the shape of the input is followed for the example's shape. A module whose
forward cannot be traced becomes one node, and `Trace.opaque` names it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from gossamer.nn import MaskedLayer
from gossamer.pruning.attention import FusedHeads, recognise

# Tensor queries that return plain values, the same for all data of one shape.
_STATIC_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad"}
_STATIC_METHODS = {"size", "dim", "ndimension", "numel", "nelement", "is_floating_point"}


class Trace(NamedTuple):
    """A traced model.

    Attributes:
        root: the traced module in evaluation mode; no longer fit for use.
        graph: the operations, in execution order.
        values: result of each node on the example input.
        scope: name of the module whose forward contains the node.
        opaque: modules that are one node because they cannot be traced, with the reason.
        heads: attention modules that are one node because they were recognised.
        changed: tensors that a node overwrote.
    """

    root: nn.Module
    graph: fx.Graph
    values: dict[fx.Node, Any]
    scope: dict[fx.Node, str]
    opaque: dict[str, str]
    heads: dict[str, FusedHeads]
    changed: dict[fx.Node, list[Tensor]]


def trace(model: nn.Module, inputs: Sequence[Any]) -> Trace:
    """Trace a throw-away copy of a model: tracing may leave proxies in it.

    Args:
        model: a copy in evaluation mode that has no other use.
        inputs: positional arguments of the forward pass.

    Returns:
        The traced model.

    Raises:
        Exception: the outermost forward cannot be traced; it may raise anything.
    """
    tracer = _Tracer(model, inputs)
    with torch.no_grad():
        graph = tracer.trace(model)
    return Trace(
        model, graph, tracer.values, tracer.scopes, tracer.opaque, tracer.heads, tracer.changed
    )


def has_hooks(module: nn.Module) -> bool:
    """Return whether the module has hooks, so that a call does more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


class _Tracer(fx.Tracer):
    """A tracer that computes while it records, so that a model can query shapes."""

    def __init__(self, model: nn.Module, inputs: Sequence[Any]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs
        self.values: dict[fx.Node, Any] = {}
        self.scopes: dict[fx.Node, str] = {}
        self.opaque: dict[str, str] = {}
        self.heads: dict[str, FusedHeads] = {}
        self.changed: dict[fx.Node, list[Tensor]] = {}
        self._static: set[fx.Node] = set()
        self._path = [""]
        self._computing = False  # inside a node's own value: nothing is recorded

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,
        concrete_args: Any = None,
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Make one placeholder per tensor; other arguments and defaults are passed unchanged."""
        arguments = [
            self.create_proxy("placeholder", f"input_{i}", (), {}) if _is_tensor(given) else given
            for i, given in enumerate(self.inputs)
        ]
        return root_fn, [self.root, *arguments]

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Record an operation and compute it."""
        node = super().create_node(kind, target, *args, **kwargs)
        self.scopes[node] = self._path[-1]
        if kind != "output":
            self._computing = True
            try:
                given = [self.values[source] for source in node.all_input_nodes]
                tensors = [value for value in given if isinstance(value, Tensor)]
                versions = [tensor._version for tensor in tensors]
                self.values[node] = self._compute(node)
            finally:
                self._computing = False
            later = zip(tensors, versions, strict=True)
            if changed := [tensor for tensor, version in later if tensor._version != version]:
                self.changed[node] = changed
            if self._is_static(node):
                self._static.add(node)
        return node

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Trace inside a module, unless it is recognised or cannot be traced."""
        if self._computing:
            return forward(*args, **kwargs)
        name = self.path_of_module(m)
        if has_hooks(m):
            self.opaque[name] = "it has hooks, which a smaller module would call with other shapes"
        elif len(args) == 1 and not kwargs and isinstance(args[0], fx.Proxy):
            self._computing = True
            try:
                heads = recognise(m, self.values[args[0].node])
            finally:
                self._computing = False
            if heads is not None:
                self.heads[name] = heads
        if name in self.opaque or name in self.heads or self.is_leaf_module(m, name):
            return self.create_proxy("call_module", name, args, kwargs)
        before = len(self.graph.nodes)
        self._path.append(name)
        try:
            return forward(*args, **kwargs)
        except Exception as error:  # a forward that fx cannot follow may raise anything
            for node in reversed(list(self.graph.nodes)[before:]):
                self.graph.erase_node(node)
            self.opaque[name] = f"it cannot be traced ({str(error).strip().splitlines()[0]:.90})"
        finally:
            self._path.pop()
        return self.create_proxy("call_module", name, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Stop at torch's layers and at layers with a mask, which have rules."""
        return isinstance(m, MaskedLayer) or super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Record a parameter that a forward reads directly."""
        if self._computing:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Decide a condition on shapes by the example; a condition on data cannot be traced."""
        if obj.node in self._static:
            return bool(self.values[obj.node])
        return super().to_bool(obj)

    def iter(self, obj: fx.Proxy) -> Any:
        """Unpack a value that is a tuple on the example."""
        value = self.values[obj.node]
        if isinstance(value, tuple | list):
            return iter([operator.getitem(obj, i) for i in range(len(value))])
        return super().iter(obj)

    def _is_static(self, node: fx.Node) -> bool:
        if node.op == "call_method":
            return node.target in _STATIC_METHODS
        if node.op != "call_function":
            return False
        if node.target is getattr:
            return node.args[1] in _STATIC_ATTRIBUTES
        sources = node.all_input_nodes
        return bool(sources) and all(source in self._static for source in sources)

    def _compute(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.inputs[int(str(node.target).removeprefix("input_"))]
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.model)
        args = fx.node.map_arg(node.args, self.values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, self.values.__getitem__)
        if node.op == "call_module":
            return self.model.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)
