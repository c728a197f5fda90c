"""Which kernel table runs, and what this build can do."""

from __future__ import annotations

from typing import Any

from gossamer.backend.registry import module_of
from gossamer.errors import DTypeError


def isas() -> list[str]:
    """Return the kernel tables that this processor can run, best first."""
    return list(module_of(None).isas())


def isa() -> str:
    """Return the kernel table in use."""
    return str(module_of(None).isa())


def use_isa(name: str | None) -> None:
    """Force a kernel table.

    Args:
        name: One of `isas()`, or None to let the processor decide again.

    Raises:
        ArgumentError: This build or this processor has no such table.
        DTypeError: The name is not a text.
    """
    if name is not None and not isinstance(name, str):
        raise DTypeError(f"name is {name!r:.80}; one of {', '.join(isas())} or None is needed")
    module_of(None).use_isa(name or "")


def info() -> dict[str, Any]:
    """Return version, kernel tables, threads and their library, and what serves each product.

    Returns:
        A dict; `serving` maps (verb, layout, dtype) to the table that serves it.
    """
    core = module_of(None)
    return {
        "version": core.version,
        "isa": isa(),
        "isas": isas(),
        "threads": core.threads(),
        "pool": core.pool_library(),
        "serving": dict(core.serving()),
        "cuda": "served by torch's operators: scatter, dense product, gather",
    }


__all__ = ["info", "isa", "isas", "use_isa"]
