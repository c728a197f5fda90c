"""One call of a model on an example, before and after surgery.

The call before tells which parameters are stored as [in, out], by how they are multiplied; the call
after finds products that have no sparse form, and the surgery is taken back then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gossamer.errors import PatternError
from gossamer.nested import call_with
from gossamer.nn.foreign import tell_configs

_TENSOR: Any = Tensor
_TURNS = {
    Tensor.t, torch.t, _TENSOR.T.__get__, _TENSOR.mT.__get__, Tensor.transpose, torch.transpose,
    Tensor.swapaxes,
}  # fmt: skip
_SAME = {Tensor.__getitem__, Tensor.contiguous, Tensor.to, Tensor.type_as}
_PRODUCTS = {
    Tensor.matmul, torch.matmul, Tensor.__matmul__, Tensor.mm, torch.mm, Tensor.bmm, torch.bmm,
    Tensor.addmm, torch.addmm, Tensor.baddbmm, torch.baddbmm,
}  # fmt: skip
_ADDED = {Tensor.addmm, torch.addmm, Tensor.baddbmm, torch.baddbmm}


class _Products(TorchFunctionMode):
    """Notes of each parameter whether its first product takes it as [in, out]."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.seen: dict[int, tuple[str, bool]] = {key: (n, False) for key, n in names.items()}
        self.alive: list[Any] = []  # so that no id is given twice
        self.turned: dict[str, bool] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        first = self.seen.get(id(args[0])) if args else None
        if first is not None and (func in _TURNS or func in _SAME):
            name, flipped = first
            self.seen[id(out)] = name, flipped ^ (func in _TURNS)
            self.alive.append(out)
        if func in _ADDED:  # what is added comes first
            args = args[1:]
            first = self.seen.get(id(args[0])) if args else None
        if (func in _PRODUCTS or func is F.linear) and len(args) > 1:
            second = self.seen.get(id(args[1]))
            if second is not None:  # x W is turned, F.linear's x W^T is not
                self.turned.setdefault(second[0], second[1] ^ (func is not F.linear))
            elif first is not None:
                self.turned.setdefault(*first)
        return out


def turned_parameters(model: nn.Module, example: Any) -> set[str]:
    """Return the names of the parameters that are multiplied as x @ w, with w [in, out]."""
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), name)
    with _Products(names) as seen:
        call(model, example)
    return {name for name, turned in seen.turned.items() if turned}


@torch.no_grad()
def call(model: nn.Module, example: Any) -> Any:
    """Call a model in evaluation mode; torch's generator and the modes are what they were.

    Args:
        model: any module.
        example: a tensor; or several arguments as a tuple or list; or a mapping by keyword.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.random.fork_rng(devices=[]):
            return call_with(model, example)
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def taken_back(model: nn.Module) -> Iterator[None]:
    """Make a model again what it was if something fails meanwhile."""
    before = [
        (m, type(m), {n: (v, _content(v)) for n, v in vars(m).items()}) for m in model.modules()
    ]
    try:
        yield
    except BaseException:
        for module, kind, members in before:
            vars(module).clear()
            module.__class__ = kind
            for name, (value, content) in members.items():
                if content is not None:
                    value.clear()
                    value.update(content)
                vars(module)[name] = value
        tell_configs(model)
        raise


def _content(value: Any) -> Any:
    return value.copy() if isinstance(value, dict | set) else None


def try_out(model: nn.Module, example: Any) -> None:
    """Call a model after the surgery.

    Raises:
        PatternError: the call fails.
    """
    try:
        call(model, example)
    except Exception as error:
        raise PatternError(
            f"the sparse model fails on example=: {error}; the model is what it was before"
        ) from error


__all__ = ["call", "taken_back", "try_out", "turned_parameters"]
