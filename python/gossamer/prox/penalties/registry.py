"""The registry of penalties: a decorator that registers a class, and a parser of names.

A penalty's name is its class name in snake case, `MCP` -> "mcp", `LogSum` -> "log_sum". Command
lines and configurations use this name, and so does the compiled operator if there is one.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, TypeVar, dataclass_transform

from gossamer.errors import PenaltyError
from gossamer.prox.penalties.base import Penalty
from gossamer.prox.penalties.fields import budget, number, per_group, per_rank

PENALTIES: dict[str, type[Penalty]] = {}

_P = TypeVar("_P", bound=Penalty)


@dataclass_transform(
    eq_default=False,
    frozen_default=True,
    field_specifiers=(number, budget, per_group, per_rank, dataclasses.field),
)
def penalty(kind: type[_P]) -> type[_P]:
    """Make a penalty class a frozen dataclass, and register it under its name."""
    made = dataclasses.dataclass(frozen=True, eq=False)(kind)
    made.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).lower()
    PENALTIES[made.name] = made
    return made


def parse_penalty(name: str | Penalty, **parameters: Any) -> Penalty:
    """Build the penalty with the given name; a penalty is returned unchanged.

    Args:
        name: a penalty's name, such as "wgsef", "lp" or "log_sum"; case is ignored, and "-" equals
            "_".
        parameters: the penalty's parameters, such as lam=1e-3; None counts as not given.

    Returns:
        The penalty.

    Raises:
        PenaltyError: the name is unknown, or a parameter is unknown, missing or out of its range.

    Example:
        >>> parse_penalty("wgsef", lam=1e-3, k="25%", groups="neuron", p=None).k
        '25%'
    """
    if isinstance(name, Penalty):
        return name
    kind = PENALTIES.get(str(name).strip().lower().replace("-", "_"))
    if kind is None:
        raise PenaltyError(f"penalty is {name!r:.80}; choose one of {', '.join(PENALTIES)}")
    given = {key: value for key, value in parameters.items() if value is not None}
    fields = dataclasses.fields(kind)
    unknown = given.keys() - {field.name for field in fields}
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in given]
    if unknown or missing:
        wrong = [f"does not take {key}" for key in sorted(unknown)]
        wrong += [f"needs {key}" for key in missing]
        takes = ", ".join(field.name for field in fields)
        raise PenaltyError(f"penalty {name!r:.80} {' and '.join(wrong)}; it takes {takes}")
    return kind(**given)
