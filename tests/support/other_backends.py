"""Modules of other devices that serve the CPU, so that tests reach them without such a device."""

from gossamer import backend
from gossamer.backend.composite.host import Host


def serve_the_cpu(name: str) -> None:
    """Let a backend serve tensors of the CPU.

    Args:
        name: "composite", torch's operators; what runs on the CPU runs on copies.
    """
    if name != "composite":
        raise ValueError(f"GOSSAMER_BACKEND is {name!r}; composite is possible")
    Host.away = staticmethod(lambda x: True)  # type: ignore[method-assign]
    backend.register("cpu", "gossamer.backend.composite")
