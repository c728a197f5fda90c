"""Optimal transport."""

from typing import Any

import numpy as np
import numpy.typing as npt

# ("dense", C) or (metric, x, y transposed)
_Cost = tuple[Any, ...]

def solve(
    cost: _Cost,
    items: int,
    a: Any,
    b: Any,
    regs: Any,
    scales: Any,
    rho_a: float,
    rho_b: float,
    method: str,
    tol: float,
    max_iter: int,
    omega: float,
    warm: bool,
    u: Any,
    v: Any,
    /,
) -> list[tuple[str, str, int, int, int, float, float, list[float]]]: ...
def plan(cost: _Cost, reg: float, u: Any, v: Any, plan: Any, /) -> None: ...
def sums(
    cost: _Cost, reg: float, u: Any, v: Any, rows: Any, cols: Any, row_cost: Any, /
) -> None: ...
def entries(
    cost: _Cost, reg: float, u: Any, v: Any, sqrt_b: Any, relative: float, /
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float64]]: ...
def schur_solve(
    indptr: Any,
    cols: Any,
    values: Any,
    rest: Any,
    column: Any,
    singular: bool,
    rhs: Any,
    tol: float,
    max_iter: int,
    z: Any,
    /,
) -> tuple[bool, int, float]: ...

_ColumnPlan = tuple[Any, Any, Any]

def semidual_evaluate(
    cost_t: Any, a: Any, b: Any, k: int, gamma: float, f: Any, /
) -> tuple[float, Any, Any, _ColumnPlan]: ...
def semidual_solve(
    cost_t: Any,
    a: Any,
    b: Any,
    k: int,
    gamma: float,
    f: Any,
    newton: bool,
    tol: float,
    max_iter: int,
    /,
) -> tuple[str, int, int, int, float, float, Any, Any, _ColumnPlan]: ...
