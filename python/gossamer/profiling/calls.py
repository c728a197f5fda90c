"""Runs a model on an example and records which inputs its layers receive."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import ArgumentError, DeviceError, DTypeError
from gossamer.nested import call_with, tensors
from gossamer.nn.computed import why_computed
from gossamer.nn.layers.base import MaskedLayer
from gossamer.nn.layers.filters import options_of
from gossamer.nn.layers.linear import dense_weight
from gossamer.nn.layers.parameter import SparseParameter
from gossamer.nn.layers.replacing import is_convolution, is_depthwise
from gossamer.nn.left_dense import BARE, DEPTHWISE, STACKED, dense_kinds, is_dense_linear
from gossamer.nn.parameter_sites import find_parameter_sites
from gossamer.nn.sites import drop_shared_with_others, find_sites
from gossamer.patterns import Unstructured
from gossamer.profiling.kinds import (
    Arguments,
    ConvolutionKind,
    Kind,
    LinearKind,
    ModuleKind,
    copied,
    described,
    is_channels_last,
)

# Modules whose own parameters `sparsify` takes, with the layers in them.
KNOWN = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)


def record(model: nn.Module, run: Callable[[], object]) -> dict[Kind, list[str]]:
    """Run once and note the calls of layers and modules that multiply by matrices.

    Args:
        model: the model.
        run: calls the model.

    Returns:
        The names of the called layers by kind, in the order of the calls; a layer that was called
        twice stands there twice.

    Raises:
        DeviceError: a layer computes on another device than the CPU.
    """
    calls: dict[Kind, list[str]] = {}
    fixed, owners = _fixed(model), _owners(model)
    inside = {id(part) for module in owners for part in module.modules()}
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            reason = fixed.get(module, "")
            note: Callable[..., Kind]
            if module in owners:
                note = partial(_of_module, named=owners[module])
            elif id(module) in inside:
                continue
            elif isinstance(module, MaskedLayer):
                note = _of_layer if module.takes_rows else _of_convolution
            elif is_dense_linear(module):
                note = _of_layer
            elif is_convolution(module) and why_computed(module) is None:
                note = _of_convolution
                if is_depthwise(module):
                    reason = f"{name}, {DEPTHWISE}"
            else:
                continue
            hook = module.register_forward_hook(
                _noting(calls, name, partial(note, fixed=reason)), with_kwargs=True
            )
            hooks.callback(hook.remove)
        run()
    return calls


def _fixed(model: nn.Module) -> dict[nn.Module, str]:
    # The pattern is of no matter: it is what `sparsify` would be asked for.
    sites, _ = find_sites(model, Unstructured(0.5), ["*"], [], None)
    before = {site.module: site.name for site in sites}
    notes = iter(drop_shared_with_others(model, sites))
    left = {site.module for site in sites}
    return {module: next(notes) for module in before if module not in left}


def _owners(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """Return the modules to time as a whole, each with the parameters that must be named.

    Another module has layers of its own, whose time would count twice: its parameters are not
    timed.
    """
    modules = dict(model.named_modules())
    known: dict[nn.Module, tuple[str, ...]] = {}
    for site in find_parameter_sites(model):
        for name in site.names:
            owner = modules[name.rpartition(".")[0]]
            if not isinstance(owner, nn.Linear):  # the last projection of attention is inside it
                known[owner] = ()
    sparse = set(map(id, SparseParameter.find_in(model)))
    bare: dict[nn.Module, list[str]] = {}
    for kind in dense_kinds(model):
        if kind.what in (BARE, STACKED):
            for name in kind.names:
                where, _, own = name.rpartition(".")
                bare.setdefault(modules[where], []).append(own)
    for name, module in modules.items():
        if id(module) in sparse:
            where, _, own = name.rpartition(".")
            owner = modules[where]
            if isinstance(owner, KNOWN):
                known[owner] = ()
            elif not isinstance(owner, nn.Linear):
                bare.setdefault(owner, []).append(own)
    for owner, names in bare.items():
        if owner not in known and sparse.issuperset(map(id, owner.children())):
            known[owner] = tuple(names)
    return known


def _noting(
    calls: dict[Kind, list[str]], name: str, kind_of: Callable[..., Kind]
) -> Callable[..., None]:
    def note(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        x = next(tensors((args, kwargs)), None)
        if x is None:
            raise DTypeError(f"layer {name!r} got no tensor; give an example that the model takes")
        if x.device.type != "cpu":
            raise DeviceError(
                f"layer {name!r} got an input on {x.device}; profile times the kernels of the CPU: "
                "move the model and the example to it"
            )
        cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        kind = kind_of(module, x, (args, kwargs), output, autocast=cast)
        calls.setdefault(kind, []).append(name)

    return note


def _of_layer(module: Any, x: Tensor, given: Arguments, output: Any, **more: Any) -> Kind:
    entries: Tensor
    if isinstance(module, MaskedLayer):
        entries, shape = module.entries, (module.out_features, module.in_features)
    else:
        entries = dense_weight(module)
        shape = (entries.shape[0], entries.shape[1])
    return LinearKind(
        *shape,
        rows=x.numel() // max(1, shape[1]),
        dtype=entries.dtype,
        pattern=module.pattern if isinstance(module, MaskedLayer) else None,
        bias=module.bias is not None,
        trains=entries.requires_grad,
        passes=x.requires_grad,
        **more,
    )


def _of_convolution(module: Any, x: Tensor, given: Arguments, output: Any, **more: Any) -> Kind:
    masked = isinstance(module, MaskedLayer)
    entries = module.entries if masked else module.weight
    if masked:
        filters = (module.out_features, module.in_features)
    else:
        filters = (entries.shape[0], entries.shape[1:].numel())
    holder = getattr(module, "product", module)  # of a dense weight under a mask
    window = options_of(holder).items()
    return ConvolutionKind(
        *filters,
        rows=output.numel() // max(1, filters[0]),
        dtype=entries.dtype,
        pattern=module.pattern if masked else None,
        bias=module.bias is not None,
        trains=entries.requires_grad,
        passes=x.requires_grad,
        window=tuple((key, tuple(v) if isinstance(v, list) else v) for key, v in window),
        images=tuple(x.shape),
        channels_last=is_channels_last(x, len(holder.kernel_size)),
        **more,
    )


def _of_module(
    module: nn.Module, x: Tensor, given: Arguments, output: Any, named: tuple[str, ...], **more: Any
) -> Kind:
    layers = [m for m in module.modules() if isinstance(m, MaskedLayer)]
    weights = [p for p in module.parameters() if p.dim() > 1]
    if layers:
        shape, dtype = (layers[0].out_features, layers[0].in_features), layers[0].entries.dtype
    else:
        *rows, cols = weights[0].shape
        shape, dtype = (math.prod(rows), cols), weights[0].dtype
    sizes = [(n, tuple(p.shape), p.dtype, p.requires_grad) for n, p in module.named_parameters()]
    return ModuleKind(
        *shape,
        rows=x.numel() // max(1, x.shape[-1] if x.dim() else 1),
        dtype=dtype,
        pattern=layers[0].pattern if layers else None,
        key=f"{module} {sizes} {described(given)}",
        of=module,
        named=named,
        given=copied(given),
        **more,
    )


def step_of(model: nn.Module, example: object, backward: bool) -> Callable[[], object]:
    """Make a function of one step: the forward pass, and the gradients of all parameters.

    The gradients are those of the output's `loss` if it has one, else of the sum of the means of
    its floating tensors. They are not stored.

    Args:
        model: the model.
        example: a tensor, a sequence of arguments, or a mapping of keyword arguments.
        backward: whether gradients are computed.

    Returns:
        The function.

    Raises:
        ArgumentError: no parameter needs a gradient.
    """
    wanted = [p for p in model.parameters() if p.requires_grad]
    if backward and not wanted:
        raise ArgumentError(
            "no parameter of the model needs a gradient; profile(..., backward=False) times the "
            "forward pass alone"
        )

    def step() -> None:
        with torch.set_grad_enabled(backward):
            out = call_with(model, example)
            if backward:
                torch.autograd.grad(_loss_of(out), wanted, allow_unused=True)

    return step


def _loss_of(out: object) -> Tensor:
    loss = out.get("loss") if isinstance(out, Mapping) else getattr(out, "loss", None)
    found = [loss] if isinstance(loss, Tensor) else list(tensors(out))
    means = [t.float().mean() for t in found if t.requires_grad]
    if not means:
        raise ArgumentError(
            f"the model's output, a {type(out).__name__}, has no tensor with a gradient; "
            "profile(..., backward=False) times the forward pass alone"
        )
    return torch.stack(means).sum()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run the body in evaluation mode; then restore modes and torch's random state."""
    modes = {module: module.training for module in model.modules()}
    with torch.random.fork_rng(devices=[]):
        model.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
