"""Every kernel in torch operators, on any device: what serves a device that has no kernel.

It has the functions of `gossamer._core`, which take the same arguments. The products scatter the
values into a dense matrix on the device, multiply with torch and gather; a step of training does
not wait for the device. What runs only when a mask changes, and the topics that have no form on a
device yet, run on the CPU on copies (`host`).
"""

from __future__ import annotations

from typing import Any

from gossamer import _core
from gossamer.backend.composite import masks as masks
from gossamer.backend.composite import products as products
from gossamer.backend.composite.host import Host

_ON_THE_CPU = {
    name: Host(getattr(_core, name)) for name in ("prox", "codes", "activations", "transport")
}


def __getattr__(name: str) -> Any:
    """The topics without a form here, and the CPU's choice of an ISA and facts of the build."""
    return _ON_THE_CPU.get(name) or getattr(_core, name)
