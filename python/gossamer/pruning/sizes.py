"""Numbers that remember the sizes of tensors they come from.

A forward that asks for `x.shape[1]` and computes with it adapts to another number of features; one
with the same number written down does not. Both look alike unless the number remembers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gossamer.pruning.trace import Node

Origins = frozenset["tuple[Node, int]"]


class SizedInt(int):
    """An integer computed from sizes: `origins` are their tensors and axes.

    `exact` is True for a size itself, and False for a result of arithmetic.
    """

    origins: Origins
    exact: bool


class SizedFloat(float):
    """A float computed from sizes, see `SizedInt`."""

    origins: Origins
    exact: bool


def sized(value: Any, origins: Origins, exact: bool = False) -> Any:
    """Return a number that remembers its origins; a bool, or another object, unchanged."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    number: Any = SizedInt(value) if isinstance(value, int) else SizedFloat(value)
    number.origins, number.exact = origins, exact
    return number


def origins_of(value: object) -> Origins:
    """Return the sizes that a number comes from; empty for any other object."""
    return value.origins if isinstance(value, SizedInt | SizedFloat) else frozenset()


def _remembering(kind: type, name: str) -> Callable[..., Any]:
    plain = getattr(kind, name)

    def method(self: Any, *others: Any) -> Any:
        result = plain(self, *others)
        if result is NotImplemented:
            return result
        return sized(result, self.origins.union(*map(origins_of, others)))

    return method


for _kind, _plain in ((SizedInt, int), (SizedFloat, float)):
    _names = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
    for _method in ("__neg__", *(f"__{side}{name}__" for side in ("", "r") for name in _names)):
        setattr(_kind, _method, _remembering(_plain, _method))
