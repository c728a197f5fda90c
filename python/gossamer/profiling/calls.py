"""Runs a model on an example and records which inputs its linear layers receive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import ArgumentError, DeviceError, DTypeError
from gossamer.nested import call_with, tensors
from gossamer.nn.layers.base import MaskedLayer
from gossamer.nn.layers.linear import dense_weight
from gossamer.nn.left_dense import is_dense_linear
from gossamer.nn.sites import drop_shared_with_others, find_sites
from gossamer.patterns import Pattern, Unstructured


@dataclass(frozen=True)
class Kind:
    """What the time of one call of a linear layer depends on.

    Args:
        out_features: rows of the weight.
        in_features: columns of the weight.
        bias: whether the layer has one.
        rows: rows of the input, all leading dimensions together.
        dtype: of the weight.
        autocast: the dtype of torch's autocast during the call, None without it.
        pattern: of the layer as it stands, None when dense.
        trains: whether the weight needs a gradient.
        passes: whether the input needs a gradient.
        fixed: why the layer cannot be swapped, "" where it can.
    """

    out_features: int
    in_features: int
    bias: bool
    rows: int
    dtype: torch.dtype
    autocast: torch.dtype | None
    pattern: Pattern | None
    trains: bool
    passes: bool
    fixed: str


def record(model: nn.Module, run: Callable[[], object]) -> dict[Kind, list[str]]:
    """Run once and note the calls of the linear layers.

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
    fixed = _fixed(model)
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            masked = isinstance(module, MaskedLayer) and module.takes_rows
            if masked or is_dense_linear(module):
                hook = module.register_forward_pre_hook(
                    _noting(calls, name, fixed.get(module, "")), with_kwargs=True
                )
                hooks.callback(hook.remove)
        run()
    return calls


def _fixed(model: nn.Module) -> dict[nn.Module, str]:
    # The pattern is of no matter: it is what `sparsify` would be asked for.
    sites, _ = find_sites(model, Unstructured(0.5), ["*"], [], None, convolutions=False)
    before = {site.module: site.name for site in sites}
    notes = iter(drop_shared_with_others(model, sites))
    left = {site.module for site in sites}
    return {module: next(notes) for module in before if module not in left}


def _noting(calls: dict[Kind, list[str]], name: str, fixed: str) -> Callable[..., None]:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        if x is None:
            raise DTypeError(f"layer {name!r} got no tensor; give an example that the model takes")
        if x.device.type != "cpu":
            raise DeviceError(
                f"layer {name!r} got an input on {x.device}; profile times the kernels of the CPU: "
                "move the model and the example to it"
            )
        entries: Tensor
        if isinstance(module, MaskedLayer):
            entries, shape = module.entries, (module.out_features, module.in_features)
        else:
            entries = dense_weight(module)
            shape = (entries.shape[0], entries.shape[1])
        cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        kind = Kind(
            *shape, module.bias is not None, x.numel() // max(1, shape[1]), entries.dtype, cast,
            module.pattern if isinstance(module, MaskedLayer) else None,
            entries.requires_grad, x.requires_grad, fixed,
        )  # fmt: skip
        calls.setdefault(kind, []).append(name)

    return note


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
