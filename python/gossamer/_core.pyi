"""Types of the compiled module; `gossamer.backend` is the way to it."""

from typing import Any

import numpy as np
import numpy.typing as npt

version: str
cuda_found: bool

class Layout:
    def __init__(
        self, rows: int, cols: int, vector: int, block_cols: int, n: int = 0, m: int = 0
    ) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def vector(self) -> int: ...
    @property
    def block_cols(self) -> int: ...
    @property
    def n(self) -> int: ...
    @property
    def m(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def panels(self) -> int: ...
    def as_ints(self) -> list[int]: ...

_Indices = npt.NDArray[np.uint8]
_Pointers = npt.NDArray[np.int32]

def encode(
    mask: Any, vector: int, n: int, m: int, /
) -> tuple[Layout, _Indices, _Pointers | None]: ...
def check_structure(layout: Layout, indices: Any, indptr: Any, /) -> None: ...
def gather(layout: Layout, indices: Any, indptr: Any, dense: Any, values: Any, /) -> None: ...
def scatter(layout: Layout, indices: Any, indptr: Any, values: Any, dense: Any, /) -> None: ...
def coordinates(layout: Layout, indices: Any, indptr: Any, /) -> npt.NDArray[np.int64]: ...
def transpose(
    layout: Layout, indices: Any, indptr: Any, /
) -> tuple[Layout, _Indices, _Pointers, _Pointers]: ...
def double_prune(
    layout: Layout, indices: Any, indptr: Any, values: Any, n: int, m: int, /
) -> tuple[Layout, _Indices, _Pointers, _Pointers]: ...
def spmm(
    layout: Layout, indices: Any, indptr: Any, values: Any, x: Any, bias: Any, y: Any, /
) -> None: ...
def spmm_t(layout: Layout, indices: Any, indptr: Any, values: Any, g: Any, dx: Any, /) -> None: ...
def spmm_t_packed(
    layout: Layout,
    indices: Any,
    indptr: Any,
    values: Any,
    t_layout: Layout,
    t_indices: Any,
    t_indptr: Any,
    perm: Any,
    g: Any,
    dx: Any,
    /,
) -> None: ...
def sddmm(
    layout: Layout, indices: Any, indptr: Any, g: Any, x: Any, grad_values: Any, /
) -> None: ...

# ("dense", C) or (metric, x, y transposed)
_Cost = tuple[Any, ...]

def ot_solve(
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
) -> list[tuple[str, str, int, int, int, float, float]]: ...
def ot_plan(cost: _Cost, reg: float, u: Any, v: Any, plan: Any, /) -> None: ...
def ot_sums(
    cost: _Cost, reg: float, u: Any, v: Any, rows: Any, cols: Any, row_cost: Any, /
) -> None: ...
def ot_entries(
    cost: _Cost, reg: float, u: Any, v: Any, sqrt_b: Any, relative: float, /
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float64]]: ...
def ot_schur_solve(
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
def prox_elements(
    x: Any, kind: str, params: tuple[float, ...], step: float, steps: Any, /
) -> None: ...
def prox_adamw(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    beta1: float,
    beta2: float,
    eps: float,
    lr: float,
    bias1: float,
    root_bias2: float,
    shrink: float,
    kind: str,
    params: tuple[float, ...],
    /,
) -> None: ...
def path_norm_prox(v: Any, w: Any, thresholds: Any, /) -> None: ...
def codes_top_k(x: Any, k: int, values: Any, indices: Any, /) -> int: ...
def codes_decode(indices: Any, values: Any, dictionary: Any, bias: Any, out: Any, /) -> None: ...
def codes_dots(indices: Any, dictionary: Any, g: Any, out: Any, /) -> None: ...
def codes_scatter(indices: Any, values: Any, g: Any, out: Any, /) -> None: ...
def codes_prefix_errors(
    indices: Any, values: Any, dictionary: Any, residual: Any, errors: Any, /
) -> None: ...
def codes_prefix_gradients(
    indices: Any,
    values: Any,
    dictionary: Any,
    weights: Any,
    residual: Any,
    grad_values: Any,
    grad_dictionary: Any,
    /,
) -> None: ...
def group_norms(
    x: Any, outer: int, count: int, inner: int, indptr: Any, indices: Any, norms: Any, /
) -> None: ...
def scale_groups(
    x: Any, outer: int, count: int, inner: int, indptr: Any, indices: Any, gains: Any, /
) -> None: ...
def metric_group_l2(
    x: Any,
    metric: Any,
    outer: int,
    count: int,
    inner: int,
    indptr: Any,
    indices: Any,
    lam: Any,
    /,
) -> None: ...
def wgsef_gains(
    norms: Any, k: float, lam: float, d: Any, c: Any, h: Any, gains: Any, /
) -> float: ...
def wgsef_value(norms: Any, k: float, d: Any, c: Any, u: Any, /) -> float: ...
def top_k(x: Any, k: int, /) -> None: ...
def l1_ball(x: Any, radius: float, /) -> None: ...
def simplex(x: Any, radius: float, /) -> None: ...
def l1_minus_l2(x: Any, lam: float, alpha: float, /) -> None: ...
def tiles_mask(
    weight: Any, n: int, m: int, method: int, sharpness: float, iterations: int, mask: Any, /
) -> None: ...
def mvue_sample(
    x: Any,
    layout: Layout,
    approximate: bool,
    seed: int,
    step: int,
    layer: int,
    values: Any,
    indices: Any,
    /,
) -> None: ...
def select_nm(layout: Layout, weight: Any, values: Any, indices: Any, /) -> None: ...
def add_pruned(
    layout: Layout, indices: Any, indptr: Any, out: Any, source: Any, alpha: float, /
) -> None: ...
def mask_difference(
    a: Layout, a_indices: Any, a_indptr: Any, b: Layout, b_indices: Any, b_indptr: Any, /
) -> int: ...
def isas() -> list[str]: ...
def isa() -> str: ...
def use_isa(name: str) -> None: ...
def serving() -> dict[tuple[str, str, str], str]: ...
def threads() -> int: ...
def pool_library() -> str: ...
