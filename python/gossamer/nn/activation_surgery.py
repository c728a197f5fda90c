"""sparsify_activations(): swap the feed-forward networks of a model in place.

A module that is nothing but a network is replaced. In any other module an `ActivationSparseFFN`
takes the place of the network's first layer, and `Absorbed` stands in the places of its activation
and of its last layer. All checks run before the first swap.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from gossamer.activations import Activation, Weights
from gossamer.activations.passes import Former, former_activation
from gossamer.arguments import check
from gossamer.errors import GossamerError, PatternError
from gossamer.nn.feed_forward import Network, Place, find_networks
from gossamer.nn.globs import Globs, as_globs, check_globs, covers, listed
from gossamer.nn.layers.activation_sparse import ActivationSparseFFN, Gate, is_sparse_part
from gossamer.nn.layers.origin import Absorbed, Origin, shell_of, transpose
from gossamer.nn.left_dense import is_dense_linear
from gossamer.nn.swapping import replace_modules
from gossamer.weight import check_dense

# Fields of transformers' configurations that name the activation.
_CONFIG_FIELDS = ("hidden_act", "hidden_activation", "activation_function")


def sparsify_activations(
    model: nn.Module,
    include: Globs = ("*",),
    exclude: Globs = (),
    relufy: bool = False,
    gate: Gate = "auto",
    slack: float = 1.0,
) -> nn.Module:
    """Replace the feed-forward networks of a model by `ActivationSparseFFN` layers, in place.

    A network is down(activation(gate(x)) * up(x)) or down(activation(gate(x))), with an output of
    the size of its input: the MLPs of transformers' Llama, Mistral, Qwen, Gemma, GPT-2, OPT, BERT
    and ViT, torch's Transformer layers, an `nn.Sequential` of two linear layers. It is recognised
    by what its method computes. With ReLU or squared ReLU the outputs stay the same up to rounding.
    Any other network stays dense, with a warning.

    A network may have sparse weights already: `SparseLinear` layers become the layer's gate, up and
    down, and recipes move their masks as before (`sparsify` first, then this function).

    `down`, and every weight of a `Conv1D`, is stored transposed, as a new parameter: build the
    optimizer afterwards. `densify` restores the modules, with their parameters under their names.

    A glob (`*`, `?`, `[…]`; `*` crosses dots) names a module and all modules inside it.
    A glob that matches nothing raises PatternError (probably a typo).

    Args:
        model: any module; if it is a network itself, use the returned module.
        include: globs of the networks to swap, or of their linear layers.
        exclude: globs of the networks to keep; they win over `include`.
        relufy: replace SiLU, GELU and similar activations by ReLU. This changes the function: the
            model needs fine-tuning (`recipes.ActivationL1(relufy_share=...)` goes over slowly). An
            activation that transformers' configuration names is set
            to "relu" there too.
        gate: see `ActivationSparseFFN`, as the next one.
        slack: see `ActivationSparseFFN`.

    Returns:
        The model.

    Raises:
        PatternError: a glob matches nothing, or nothing is left to swap; the model is unchanged.
        DTypeError, DeviceError: the kernels do not support a layer's dtype or device.

    Reference:
        Mirzadeh et al. 2023, "ReLU strikes back" (relufication).

    Example:
        >>> import torch
        >>> mlp = torch.nn.Sequential(
        ...     torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8)
        ... )
        >>> sparsify_activations(mlp)
        ActivationSparseFFN(d=8, hidden=32, gated=False, gate=auto, activation=relu, bias=True)
    """
    check(sparsify_activations, locals())
    swaps, whys = _plan(model, as_globs(include), as_globs(exclude), relufy)
    notes = [f"{listed(names)} ({why})" for why, names in whys.items()]
    if not swaps:
        raise PatternError(
            "sparsify_activations found no feed-forward network to convert: "
            + ("; ".join(notes) or "include= and exclude= leave none")
        )
    for swap in swaps:
        for place in swap.network.linears:
            if (
                is_sparse_part(place.value) or place.value.weight.is_meta
            ):  # numbers are loaded later
                continue
            check_dense(place.value.weight, f"{place.name} of {swap.network.label}")
    transposed: dict[int, nn.Parameter] = {}
    layers: list[ActivationSparseFFN] = []
    for swap in swaps:
        try:
            weights = _weights(swap.network, transposed)
            layers.append(ActivationSparseFFN.of_parts(weights, swap.activation, gate, slack))
        except GossamerError as error:
            raise type(error)(f"{swap.network.label}: {error}") from None

    changed: dict[nn.Module, type] = {}
    new: dict[nn.Module, nn.Module] = {}
    for swap, layer in zip(swaps, layers, strict=True):
        former = swap.network.activation_place
        if swap.relu and former is not None:
            changed[layer] = type(former.value)
            layer.former = _former_of(swap.network.activation)
        _put(swap, layer, new)
    model = replace_modules(model, new)
    notes += _tell_configs(model, changed)
    if notes:
        warnings.warn(
            "sparsify_activations left unchanged: " + "; ".join(notes), UserWarning, stacklevel=2
        )
    return model


class _Swap(NamedTuple):
    network: Network
    activation: Activation
    relu: bool
    """Whether its activation becomes ReLU."""


def _plan(
    model: nn.Module, include: Sequence[str], exclude: Sequence[str], relufy: bool
) -> tuple[list[_Swap], dict[str, list[str]]]:
    """Return what is to be swapped, and the names of the other networks by the reason."""
    networks, unfit = find_networks(model)
    globs = {"include": include, "exclude": exclude}
    check_globs(model, globs, "feed-forward networks", [n.label for n in networks])

    def chosen(names: list[str]) -> bool:
        inside, outside = (
            any(covers(glob, name) for glob in globs for name in names)
            for globs in (include, exclude)
        )
        return inside and not outside

    whys: dict[str, list[str]] = {}
    for entry in unfit:
        if chosen(entry.names):
            whys.setdefault(entry.why, []).append(entry.names[0])
    swaps: list[_Swap] = []
    for network in networks:
        if not chosen(network.names + network.part_names):
            continue
        activation = _activation_of(network.activation)
        why = _obstacle(network)
        if why is None and activation is None:
            why = _why_not_relu(network, relufy)
        if why is None:
            swaps.append(_Swap(network, activation or "relu", activation is None))
        else:
            whys.setdefault(why, []).append(network.label)
    tied = _tied_elsewhere(model, [swap.network for swap in swaps])
    if tied:
        why = "a weight that would be transposed is used elsewhere too"
        whys.setdefault(why, []).extend(network.label for network in tied)
    return [swap for swap in swaps if swap.network not in tied], whys


def _obstacle(network: Network) -> str | None:
    """Return why a network cannot be swapped, whatever its activation."""
    for place in network.linears:
        if not is_dense_linear(place.value) and not is_sparse_part(place.value):
            return (
                f"{place.name} is a {type(place.value).__name__}; only nn.Linear itself, Conv1D "
                "and a SparseLinear with an exact backward pass can be swapped"
            )
    dtypes = {place.value.weight.dtype for place in network.linears}
    if len(dtypes) > 1:
        return f"its weights have the dtypes {' and '.join(map(str, dtypes))}"
    inner = [*network.linears, *([network.activation_place] if network.activation_place else [])]
    for place in inner:
        if isinstance(place.value, nn.Module) and _has_hooks(place.value):
            return f"{place.name} has hooks, which would not be called"
    if any(network.dropouts):
        return (
            f"dropout of {max(network.dropouts)} before {network.down.name}; set its p to 0, "
            "because the hidden activations are not kept"
        )
    if network.whole:
        return None
    if network.up is not None:
        return "its module does more than the network, and the network has two factors"
    if network.activation_place is None:
        return (
            f"{network.activation_name} is called in its method; make it a module, such as "
            "self.activation = nn.ReLU()"
        )
    return None


def _has_hooks(module: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)


@torch.no_grad()
def _activation_of(function: Callable[[Tensor], Tensor]) -> Activation | None:
    """Return which activation a function is."""
    positive = torch.cat([torch.linspace(0, 8, 257), torch.tensor([1e2, 1e4, 1e6])]).double()
    x = torch.cat([positive, -positive])
    y = function(x.clone())
    if torch.equal(y, x.relu()):
        return "relu"
    return "relu2" if torch.allclose(y, x.relu().square(), rtol=1e-12, atol=0) else None


@torch.no_grad()
def _former_of(function: Callable[[Tensor], Tensor]) -> Former | None:
    """Return which activation a function is, None if a network cannot go over from it slowly."""
    x = torch.linspace(-8, 8, 257, dtype=torch.float64)
    y = function(x.clone())
    forms: tuple[Former, ...] = get_args(Former)
    return next((f for f in forms if torch.allclose(y, former_activation(x, f), atol=1e-9)), None)


@torch.no_grad()
def _why_not_relu(network: Network, relufy: bool) -> str | None:
    """Return why a network with another activation is not given a ReLU."""
    x = torch.tensor([-30.0, 30.0], dtype=torch.float64)
    name = network.activation_name
    if not torch.allclose(network.activation(x.clone()), x.relu(), atol=1e-3):
        return f"its activation {name} is not like ReLU"
    if not relufy:
        return (
            f"its activation is {name}; relufy=True replaces it by ReLU, which changes the "
            "function and needs fine-tuning"
        )
    if network.activation_place is None:
        return (
            f"its activation {name} is called in its method; make it a module that can be replaced"
        )
    return None


def _tied_elsewhere(model: nn.Module, networks: list[Network]) -> list[Network]:
    """Return the networks with a weight that is to be transposed and has another use."""
    uses: dict[int, set[bool]] = {
        id(parameter): {False} for parameter in model._parameters.values()
    }
    places: set[tuple[int, str]] = set()
    for network in networks:
        for place, turned in zip(network.linears, _turned(network), strict=True):
            uses.setdefault(id(place.value.weight), set()).add(turned)
            places.add((id(place.owner), place.name))
    for parent in model.modules():
        for name, child in parent.named_children():
            if (id(parent), name) not in places:
                for parameter in child.parameters(recurse=False):
                    uses.setdefault(id(parameter), set()).add(False)
    tied = [
        network
        for network in networks
        if any(uses[id(place.value.weight)] == {True, False} for place in network.linears)
    ]
    if not tied:
        return []
    return tied + _tied_elsewhere(model, [n for n in networks if n not in tied])


def _turned(network: Network) -> list[bool]:
    """Whether each weight is stored transposed; a sparse layer stays as it is."""
    pairs = zip(network.linears, network.turned, strict=True)
    return [turned and not is_sparse_part(place.value) for place, turned in pairs]


def _weights(network: Network, transposed: dict[int, nn.Parameter]) -> Weights:
    """Return the parameters of the layer, [hidden, d]."""
    weights: list[Any] = []
    linears = [place.value for place in network.linears]
    for linear, turned in zip(linears, _turned(network), strict=True):
        weight = linear if is_sparse_part(linear) else linear.weight
        weights.append(transpose(weight, transposed) if turned else weight)
    biases = [None if is_sparse_part(linear) else linear.bias for linear in linears]
    if network.up is None:
        weights.insert(1, None)
        biases.insert(1, None)
    return Weights(*weights, *biases)


def _put(swap: _Swap, layer: ActivationSparseFFN, new: dict[nn.Module, nn.Module]) -> None:
    """Put a layer in the place of a network; if that is a module, note it in `new`."""
    network, relu = swap.network, swap.relu
    place, turned = network.activation_place, _turned(network)
    # A sparse layer is no shell: densify puts back the layer itself.
    values = [p.value for p in network.linears]
    shells: dict[int, nn.Module] = {id(v): v for v in values if is_sparse_part(v)}
    if network.whole:
        shell = shell_of(network.module, shells)
        linears: list[Any] = [shells[id(p.value)] for p in network.linears]
        if relu and place is not None:
            setattr(shells[id(place.owner)], place.name, nn.ReLU())
        new[network.module] = layer
    else:
        shell, last = (shell_of(p.value, shells) for p in (network.gate, network.down))
        linears = [shell, last]
        layer.train(network.gate.value.training)
        setattr(*network.gate, layer)
        setattr(*network.down, Absorbed(last))
        _absorb(place, relu)
    if network.up is None:
        linears.insert(1, None)
        turned.insert(1, False)
    layer.origin = Origin(shell, tuple(linears), tuple(turned))


def _absorb(place: Place | None, relu: bool) -> None:
    if place is None:
        return
    original = place.value
    if relu:
        original = nn.ReLU() if isinstance(original, nn.Module) else functional.relu
    if type(place.owner).__setstate__ is nn.Module.__setstate__:
        setattr(*place, Absorbed(original))
    else:  # torch's decoder layer takes ReLU where a copied state names no activation
        delattr(*place)
        vars(place.owner)[place.name] = Absorbed(original)


def _tell_configs(model: nn.Module, changed: Mapping[nn.Module, type]) -> list[str]:
    """Write the new activation to the configurations of a model of transformers.

    Args:
        model: the model.
        changed: layers that got a ReLU, with the class of their former activation.

    Returns:
        A note on each field that another module of the model still needs.
    """
    holders: dict[int, nn.Module] = {}
    for module in model.modules():
        config = vars(module).get("config")
        if hasattr(type(config), "save_pretrained"):
            holders.setdefault(id(config), module)
    notes = []
    for holder in holders.values():
        config = vars(holder)["config"]
        activations = {changed[m] for m in holder.modules() if m in changed}
        others = [name for name, m in holder.named_modules() if type(m) in activations]
        for field in _CONFIG_FIELDS:
            if not activations or getattr(config, field, "relu") == "relu":
                continue
            if others:
                notes.append(
                    f"config.{field} is {getattr(config, field)!r} for {listed(others)}, and a "
                    "model that is loaded with it has no ReLU"
                )
            else:
                setattr(config, field, "relu")
    return notes


__all__ = ["sparsify_activations"]
