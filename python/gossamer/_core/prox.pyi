"""Proximal operators."""

from typing import Any

def elements(x: Any, kind: str, params: tuple[float, ...], step: float, steps: Any, /) -> None: ...
def adamw(
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
def path_norm(v: Any, w: Any, thresholds: Any, /) -> None: ...
