"""Which module serves which device.

`gossamer._core` serves "cpu", and `gossamer.backend.composite`, which computes with torch's
operators, serves "cuda". Another module serves a device once it is registered here: it has the
functions of `_core` and takes tensors of its device; callers do not change. It may need two things
more:

    queue      the arguments that its functions take after those of `_core`, such as a device index
               and a stream. Calls on the CPU add none.
    composite  the module that is called when a function raises `Unserved`, which says that the
               arguments are right but no kernel of this device takes them. The composite computes
               the same result from torch operators on the same device.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from torch import Tensor

from gossamer import _core
from gossamer.errors import ArgumentError, DeviceError, Unserved

Queue = Callable[[Any], tuple[Any, ...]]
"""Maps the tensor of a call to the last arguments of the call, such as (device index, stream)."""


class _Entry(NamedTuple):
    """The module of a device, or its name until the first tensor of that device."""

    module: Any
    queue: Queue | None = None
    composite: Any = None


_OURS = {"cpu": _Entry(_core), "cuda": _Entry("gossamer.backend.composite")}
_ENTRIES: dict[str, _Entry] = dict(_OURS)
# The module of the CPU if nothing is added to its calls: the shortest way, for small products.
_cpu: Any = _core


def register(device: str, module: Any, queue: Queue | None = None, composite: Any = None) -> None:
    """Register the compiled module that serves a device type; it replaces the module before.

    Args:
        device: Device type as in `torch.device(...).type`, for example "cuda".
        module: The module, or its name, which is imported at the first tensor of that device. It
            has those functions of `gossamer._core` that it serves.
        queue: Maps the tensor of a call to the arguments that each function takes after those of
            `gossamer._core`. None adds nothing.
        composite: A module, or its name, whose function of the same name is called with the same
            arguments, without those of `queue`, when the module raises `Unserved`. None lets the
            error through.

    Raises:
        ArgumentError: `device` is not a device type.

    Example:
        >>> from gossamer.backend import registry
        >>> registry.register("meta", "gossamer._core")
        >>> registry.devices()
        ('cpu', 'cuda', 'meta')
        >>> registry.unregister("meta")
    """
    if not isinstance(device, str) or not device.isidentifier():
        raise ArgumentError(
            f"device is {device!r:.80}; a device type is needed: pass one such as 'cuda'"
        )
    _set(device, _Entry(module, queue, composite))


def unregister(device: str) -> None:
    """Remove the module of a device type. The CPU and CUDA get the package's own module back.

    Raises:
        DeviceError: No module is registered for the device type.
    """
    if device not in _ENTRIES:
        raise DeviceError(f"{device!r:.80} has no module; choose one of {', '.join(_ENTRIES)}")
    if device in _OURS:
        _set(device, _OURS[device])
    else:
        del _ENTRIES[device]


def devices() -> tuple[str, ...]:
    """Return the device types that have a module."""
    return tuple(_ENTRIES)


def is_registered(x: Tensor) -> bool:
    """Return whether the device of x has a module."""
    return x.is_cpu or x.device.type in _ENTRIES


def module_of(x: object) -> Any:
    """Return the functions that serve x.

    Args:
        x: A torch tensor or a NumPy array. Anything else, and a tensor on a device without a
            module, gets the module of the CPU, whose error names the argument.

    Returns:
        The compiled module, or an object that adds its queue and its composite to each function.
    """
    on_cpu = not isinstance(x, Tensor) or x.is_cpu
    if on_cpu and _cpu is not None:
        return _cpu
    device = "cpu" if on_cpu else x.device.type  # type: ignore[attr-defined]
    entry = _ENTRIES.get(device)
    if entry is None:
        return module_of(None)
    if isinstance(entry.module, str) or isinstance(entry.composite, str):
        entry = _Entry(_loaded(entry.module), entry.queue, _loaded(entry.composite))
        _set(device, entry)
    if entry.queue is None and entry.composite is None:
        return entry.module
    return _Served(entry.module, () if entry.queue is None else entry.queue(x), entry.composite)


class _Served:
    """The functions of a module, called with a queue, and with a composite behind them."""

    def __init__(self, module: Any, queue: tuple[Any, ...], composite: Any) -> None:
        self._module, self._queue, self._composite = module, queue, composite

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)
        other = getattr(self._composite, name, None)
        if not callable(function):  # a submodule
            return _Served(function, self._queue, other)

        def call(*args: Any) -> Any:
            try:
                return function(*args, *self._queue)
            except Unserved:
                if other is None:
                    raise
            return other(*args)

        return call


def _loaded(module: Any) -> Any:
    return import_module(module) if isinstance(module, str) else module


def _set(device: str, entry: _Entry) -> None:
    global _cpu
    _ENTRIES[device] = entry
    if device == "cpu":
        added = isinstance(entry.module, str) or entry.queue or entry.composite
        _cpu = None if added else entry.module


__all__ = ["Queue", "Unserved", "devices", "is_registered", "module_of", "register", "unregister"]
