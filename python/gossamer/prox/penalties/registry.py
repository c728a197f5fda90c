"""Penalties by name, for command lines and configuration files."""

from __future__ import annotations

import dataclasses
from typing import Any

from gossamer.errors import PenaltyError
from gossamer.prox.penalties.base import Penalty
from gossamer.prox.penalties.concave import MCP, SCAD, CappedL1, LogSum, TransformedL1
from gossamer.prox.penalties.constraints import L1Ball, Simplex, TopK
from gossamer.prox.penalties.separable import L0, L1, ElasticNet, Lp
from gossamer.prox.penalties.structured import L1MinusL2, SparseGroupLasso
from gossamer.prox.penalties.wgsef import WGSEF

PENALTIES: dict[str, type[Penalty]] = {
    "l1": L1,
    "elastic_net": ElasticNet,
    "l0": L0,
    "lp": Lp,
    "mcp": MCP,
    "scad": SCAD,
    "capped_l1": CappedL1,
    "transformed_l1": TransformedL1,
    "log_sum": LogSum,
    "l1_minus_l2": L1MinusL2,
    "sparse_group_lasso": SparseGroupLasso,
    "wgsef": WGSEF,
    "top_k": TopK,
    "l1_ball": L1Ball,
    "simplex": Simplex,
}


def parse_penalty(name: str | Penalty, **parameters: Any) -> Penalty:
    """The penalty that a name stands for; a penalty is returned as it is.

    Args:
        name: such as "wgsef", "lp" or "l1"; case, "-" and "_" do not matter.
        parameters: the penalty's own, such as lam=1e-3; None means not given.

    Raises:
        PenaltyError: An unknown name, a parameter that the penalty does not have, one that is
            missing, or one out of its range.

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
