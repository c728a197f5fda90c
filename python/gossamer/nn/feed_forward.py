"""Finds the feed-forward networks of a model: down(activation(gate(x)) * up(x)), or without up.

The input and the output of a network have one size. The method that computes it is followed as a
torch.fx graph, so neither the names of its layers nor its class matter. A method that fx cannot
follow has no network here.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from gossamer.nn.layers.base import MaskedLayer
from gossamer.nn.layers.linear import is_conv1d
from gossamer.nn.layers.origin import twin_of

# Methods that compute the network of a module whose forward does more: of transformers' encoder
# layers, whose network is spread over two modules, and of torch's.
_METHODS = ("feed_forward_chunk", "_ff_block")

_PRODUCTS = (operator.mul, torch.mul)


class Place(NamedTuple):
    """An attribute of a module, which holds a layer or a function."""

    owner: nn.Module
    name: str

    @property
    def value(self) -> Any:
        """What it holds."""
        return getattr(self.owner, self.name)


@dataclass(eq=False)
class Network:
    """A feed-forward network.

    Args:
        module: the module with the method that computes it.
        names: all names of the module in the model.
        whole: whether the module is nothing but the network.
        gate: where its first layer is.
        up: where the layer of the second factor is, or None.
        down: where its last layer is.
        activation: the function of the gate.
        activation_place: where the activation is, None if it is written in the method.
        dropouts: probabilities of dropouts before `down`.
    """

    module: nn.Module
    names: list[str]
    whole: bool
    gate: Place
    up: Place | None
    down: Place
    activation: Callable[[Tensor], Tensor]
    activation_place: Place | None
    activation_name: str
    dropouts: list[float]

    @property
    def label(self) -> str:
        """Its first name in messages."""
        return self.names[0] or "the model"

    @property
    def linears(self) -> list[Place]:
        """Where its linear layers are: gate, up if there is one, down."""
        return [self.gate, *([self.up] if self.up else []), self.down]

    @property
    def turned(self) -> list[bool]:
        """Whether each of them stores its weight transposed to [hidden, size of x]."""
        linears = [place.value for place in self.linears]
        return [is_conv1d(linear) != (linear is linears[-1]) for linear in linears]

    @property
    def part_names(self) -> list[str]:
        """The names of its linear layers under each name of its module."""
        own = {id(module): name for name, module in self.module.named_modules()}
        return [
            ".".join(filter(None, (name, own[id(place.value)])))
            for name in self.names
            for place in self.linears
        ]


class Unfit(NamedTuple):
    """A module that seems to be a network, and why it cannot be one."""

    names: list[str]
    why: str


def find_networks(model: nn.Module) -> tuple[list[Network], list[Unfit]]:
    """Return the networks of a model, and modules that seem to be one."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    networks: list[Network] = []
    unfit: list[Unfit] = []
    taken: set[int] = set()
    for module in model.modules():
        method = next((m for m in _METHODS if callable(getattr(module, m, None))), "forward")
        if method == "forward" and sum(map(is_linear, module.children())) < 2:
            continue
        own = names[id(module)]
        try:
            graph = _follow(module, method)
        except Exception as error:  # a method that fx cannot follow may raise anything
            if any(name.startswith("act") for name, _ in module.named_children()):
                text = (str(error).strip() or type(error).__name__).splitlines()[0]
                unfit.append(Unfit(own, f"its {method} cannot be followed: {text:.90}"))
            continue
        reads = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
        owners = {id(module.get_submodule(read.rpartition(".")[0])): read for read in reads}
        for network in _match(module, graph, own, method):
            parts = {id(place.value) for place in network.linears}
            if not parts & taken:
                taken |= parts
                if read := parts & owners.keys():
                    unfit.append(Unfit(own, f"its {method} reads {owners[read.pop()]}"))
                else:
                    networks.append(network)
    return networks, unfit


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer of any kind."""
    return isinstance(module, nn.Linear | MaskedLayer) or is_conv1d(module)


class _Tracer(fx.Tracer):
    def __init__(self, method: str) -> None:
        super().__init__()
        self.traced_func_name = method

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,
        concrete_args: Any = None,
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Make placeholders for the arguments without a default; the others keep theirs."""
        _, *given = inspect.signature(root_fn).parameters.values()
        plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return root_fn, [
            self.root,
            *(
                self.create_proxy("placeholder", p.name, (), {})
                for p in given
                if p.kind in plain and p.default is p.empty
            ),
        ]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Stop at every module; follow only those that a method shares its network with."""
        if self.traced_func_name == "forward" or is_linear(m):
            return True
        return not any(map(is_linear, m.children()))


def _follow(module: nn.Module, method: str) -> fx.Graph:
    # Of a copy, because a method may write what it sees to its module.
    return _Tracer(method).trace(twin_of(module))


def _match(module: nn.Module, graph: fx.Graph, names: list[str], method: str) -> Iterator[Network]:
    for node in graph.nodes:
        if _linear(module, node) is not None:
            network = _match_at(module, graph, node, names, method)
            if network is not None:
                yield network


def _match_at(
    module: nn.Module, graph: fx.Graph, last: fx.Node, names: list[str], method: str
) -> Network | None:
    """Return the network that ends at a linear layer."""
    nodes, dropouts = [last], []
    node = _only_input(last)
    while node is not None and (p := _dropout(module, node)) is not None:
        dropouts.append(p)
        nodes.append(node)
        node = _only_input(node)
    second = None
    if node is not None and node.target in _PRODUCTS and len(node.args) == 2 and not node.kwargs:
        factors = [a for a in node.args if isinstance(a, fx.Node)]
        linear = [a for a in factors if _linear(module, a) is not None]
        if len(factors) != 2 or len(linear) != 1 or len(node.users) != 1:
            return None
        nodes += [node, *linear]
        (second,) = linear
        node = next(a for a in factors if a is not second)
    steps: list[fx.Node] = []
    while node is not None and _linear(module, node) is None:
        steps.append(node)
        node = _only_input(node)
    if node is None or not steps:
        return None
    nodes += [*steps, node]
    inner = [n for n in nodes if n is not last]
    if any(len(n.users) != 1 for n in inner):
        return None
    if second is not None and _only_input(second) is not _only_input(node):
        return None
    x = _only_input(node)
    if x is None or _sizes(module, node)[0] != _sizes(module, last)[1]:
        return None
    steps.reverse()
    activation = _composed(module, steps)
    if activation is None:
        return None
    place = _place_of(module, steps[0], method) if len(steps) == 1 else None
    return Network(
        module,
        names,
        method == "forward" and _is_whole(module, graph, nodes, x, last),
        _place(module, node),
        None if second is None else _place(module, second),
        _place(module, last),
        activation,
        place,
        _name_of(module, steps),
        dropouts,
    )


def _linear(module: nn.Module, node: fx.Node) -> nn.Module | None:
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    layer = module.get_submodule(str(node.target))
    return layer if is_linear(layer) else None


def _sizes(module: nn.Module, node: fx.Node) -> tuple[int, int]:
    """Return the sizes of an input and an output row of a linear layer."""
    layer = module.get_submodule(str(node.target))
    if is_conv1d(layer):
        return len(layer.weight), layer.nf  # type: ignore[return-value,arg-type]
    return layer.in_features, layer.out_features  # type: ignore[return-value]


def _only_input(node: fx.Node) -> fx.Node | None:
    return node.all_input_nodes[0] if len(node.all_input_nodes) == 1 else None


def _dropout(module: nn.Module, node: fx.Node) -> float | None:
    """Return the probability if a node is a dropout."""
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        return layer.p if type(layer) is nn.Dropout else None
    if node.op == "call_function" and node.target is functional.dropout:
        p = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
        return float(p) if isinstance(p, int | float) else 1.0
    return None


def _place(module: nn.Module, node: fx.Node) -> Place:
    parent, _, name = str(node.target).rpartition(".")
    return Place(module.get_submodule(parent), name)


def _place_of(module: nn.Module, step: fx.Node, method: str) -> Place | None:
    if step.op == "call_module":
        return _place(module, step)
    # torch's layers hold a function.
    if method == "_ff_block" and vars(module).get("activation") is step.target:
        return Place(module, "activation")
    return None


def _composed(module: nn.Module, steps: list[fx.Node]) -> Callable[[Tensor], Tensor] | None:
    """Return the function of one tensor that the steps compute, None if it is not elementwise."""

    def apply(x: Tensor) -> Tensor:
        for step in steps:
            args = fx.node.map_arg(step.args, lambda _, x=x: x)  # type: ignore[misc]
            kwargs = fx.node.map_arg(step.kwargs, lambda _, x=x: x)  # type: ignore[misc]
            if step.op == "call_module":
                x = module.get_submodule(str(step.target))(*args, **kwargs)
            elif step.op == "call_method":
                x = getattr(args[0], str(step.target))(*args[1:], **kwargs)
            else:
                x = step.target(*args, **kwargs)  # type: ignore[operator]
        return x

    for step in steps:
        layer = module.get_submodule(str(step.target)) if step.op == "call_module" else None
        if layer is not None and any(True for _ in layer.parameters()):
            return None  # a function that learns
        if step.op not in ("call_module", "call_function", "call_method"):
            return None
    x = torch.tensor([[-3.0, 0.5], [2.0, -0.25], [0.5, 2.0]], dtype=torch.float64)
    try:
        y = apply(x.clone())
        elementwise = y.shape == x.shape and torch.allclose(y, apply(x.t().clone()).t())
    except Exception:  # not a function of any shape
        return None
    return apply if elementwise else None


def _name_of(module: nn.Module, steps: list[fx.Node]) -> str:
    names = []
    for step in steps:
        if step.op == "call_module":
            names.append(type(module.get_submodule(str(step.target))).__name__)
        else:
            names.append(getattr(step.target, "__name__", str(step.target)))
    return " of ".join(reversed(names))


def _is_whole(
    module: nn.Module, graph: fx.Graph, nodes: list[fx.Node], x: fx.Node, last: fx.Node
) -> bool:
    """Return whether a module computes and holds nothing beside the network."""
    others = [n for n in graph.nodes if n not in nodes and n is not x]
    holds = {id(module)}
    for node in nodes:
        if node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            holds |= {id(part) for part in layer.modules()}
    return (
        x.op == "placeholder"
        and [n.op for n in others] == ["output"]
        and others[0].args == (last,)
        and len(inspect.signature(type(module).forward).parameters) == 2
        and not any(True for _ in module.parameters(recurse=False))
        and not any(True for _ in module.buffers(recurse=False))
        and all(id(part) in holds for part in module.modules())
    )


__all__ = ["Network", "Place", "Unfit", "find_networks", "is_linear"]
