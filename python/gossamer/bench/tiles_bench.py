"""Transposable masks: seconds beside eager torch, and kept magnitude beside the optimum.

A row of seconds has the bar rival seconds / own seconds >= `bar`. A row of quality has the share
of the optimum's kept magnitude as its ratio, to be at least `bar`; a bar of None is no promise.
"""

import importlib
import importlib.util
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.bench.rivals import WrongResultError
from gossamer.masks import TileMethod, is_transposable, transposable_mask
from gossamer.timing import interleaved, threads

__all__ = ["rows"]

# What the literature gives for 8192 x 8192 at 8:16 on a CPU, in seconds.
_PUBLISHED = {"two_approximation": 3.23, "minimum-cost flow": 350.0}


def rows(quick: bool) -> list[dict[str, Any]]:
    """Measure every method.

    Args:
        quick: Small weights, for a look; the published times are then left out.

    Returns:
        Rows with the keys kernel, case, threads, gossamer_seconds, rival, rival_seconds, bar,
        ratio and note; seconds are medians, None where none were taken.

    Raises:
        WrongResultError: A mask is not transposable, or differs from its rival's.
    """
    return [*_seconds(quick), *_quality(quick)]


def _seconds(quick: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for count in (1, 2):
        with threads(count):
            found += _against_torch(256 if quick else 2048, count, repeats=3 if quick else 7)
    if not quick:
        with threads(2):
            found += _at_full_size()
    return found


def _against_torch(size: int, count: int, repeats: int) -> list[dict[str, Any]]:
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    entrants: list[tuple[TileMethod, int, int, str, Callable[[Tensor, int, int], Tensor]]] = [
        ("exact", 2, 4, "eager torch: product with the 90 tiles", _torch_exact),
        ("two_approximation", 8, 16, "eager torch: topk of rows and columns", _torch_meet),
        ("entropy", 8, 16, "eager torch: logsumexp, no rounding", _torch_entropy),
    ]
    found = []
    for method, n, m, rival, reference in entrants:
        mask, theirs = transposable_mask(weight, n, m, method), reference(weight, n, m)
        # Rounding to whole entries is left out of what the rival of the entropy method does.
        if not is_transposable(mask, n, m) or (
            method != "entropy" and _kept(weight, mask) < _kept(weight, theirs) * (1 - 1e-6)
        ):
            raise WrongResultError(f"transposable_mask, {method}: wrong mask at {n}:{m}")
        times = interleaved(
            {
                "own": partial(transposable_mask, weight, n, m, method),
                "rival": partial(reference, weight, n, m),
            },
            repeats=repeats,
            warmup=1,
        )
        own, other = times["own"].median, times["rival"].median
        found.append(
            _row(method, f"{size} x {size}, {n}:{m}", count, own, rival, other, 1.0, other / own)
        )
    return found


def _at_full_size() -> list[dict[str, Any]]:
    size, n, m = 8192, 8, 16
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    methods: tuple[TileMethod, ...] = ("two_approximation", "greedy", "entropy")
    times = interleaved(
        {name: partial(transposable_mask, weight, n, m, name) for name in methods},
        repeats=3,
        warmup=1,
    )
    found = []
    for name in methods:
        rival = "minimum-cost flow" if name == "entropy" else "two_approximation"
        own, other = times[name].median, _PUBLISHED[rival]
        row = _row(name, f"{size} x {size}, {n}:{m}", 2, own, f"{rival}, as published", other)
        note = "the rival's seconds are published, on another machine"
        found.append(row | {"bar": 1.0, "ratio": other / own, "note": note})
    return found


def _quality(quick: bool) -> list[dict[str, Any]]:
    if importlib.util.find_spec("scipy") is None:
        return []
    cases = [(2, 4), (4, 8), (2, 8), (8, 16)]
    tiles = 4 if quick else 12
    found = []
    for n, m in cases:
        weight = torch.randn(tiles * m, tiles * m, generator=torch.Generator().manual_seed(m + n))
        best = sum(_optimum(tile, n) for tile in _tiles(weight, m).abs().double())
        exact: tuple[TileMethod, ...] = ("exact",) if m == 4 else ()
        least: dict[TileMethod, float | None]
        least = {"exact": 1 - 1e-9, "entropy": 0.97, "greedy": None, "two_approximation": None}
        for name in (*exact, "entropy", "greedy", "two_approximation"):
            share = _kept(weight, transposable_mask(weight, n, m, name)) / best
            note = f"kept magnitude over the optimum's, Gaussian, {tiles**2} tiles"
            found.append(
                _row(f"{name}: quality", f"{n}:{m}", None, None, "optimum (linear program)", None)
                | {"bar": least[name], "ratio": share, "note": note}
            )
    return found


def _row(
    method: str,
    case: str,
    count: int | None,
    own: float | None,
    rival: str,
    other: float | None,
    bar: float | None = None,
    ratio: float | None = None,
) -> dict[str, Any]:
    return {
        "kernel": f"transposable_mask, {method}",
        "case": case,
        "threads": count,
        "gossamer_seconds": own,
        "rival": rival,
        "rival_seconds": other,
        "bar": bar,
        "ratio": ratio,
        "note": "",
    }


def _kept(weight: Tensor, mask: Tensor) -> float:
    return float((weight.double().abs() * mask).sum())


def _tiles(weight: Tensor, m: int) -> Tensor:
    rows, cols = weight.shape
    return weight.reshape(rows // m, m, cols // m, m).transpose(1, 2).reshape(-1, m, m)


def _whole(tiles: Tensor, rows: int, cols: int) -> Tensor:
    m = tiles.shape[1]
    return tiles.reshape(rows // m, cols // m, m, m).transpose(1, 2).reshape(rows, cols)


def _torch_exact(weight: Tensor, n: int, m: int) -> Tensor:
    lines = [line for line in itertools.product([1.0, 0.0], repeat=m) if sum(line) == n]
    squares = itertools.product(lines, repeat=m)
    every = torch.tensor([s for s in squares if {sum(c) for c in zip(*s, strict=True)} == {n}])
    every = every.reshape(-1, m * m)
    best = (_tiles(weight, m).abs().reshape(-1, m * m) @ every.T).argmax(dim=1)
    return _whole(every[best].reshape(-1, m, m) > 0, *weight.shape)


def _torch_meet(weight: Tensor, n: int, m: int) -> Tensor:
    tiles = _tiles(weight, m).abs()
    kept = torch.ones_like(tiles, dtype=torch.bool)
    for dim in (1, 2):
        top = tiles.topk(n, dim=dim, sorted=False).indices
        kept &= torch.zeros_like(kept).scatter_(dim, top, value=True)
    return _whole(kept, *weight.shape)


def _torch_entropy(weight: Tensor, n: int, m: int, steps: int = 100) -> Tensor:
    tiles = _tiles(weight, m).abs()
    log_s, log_q = tiles * (20 / tiles.mean()), torch.zeros_like(tiles)
    for _ in range(steps):
        for dim in (2, 1):
            log_s = log_s + math.log(n) - log_s.logsumexp(dim=dim, keepdim=True)
        raised = log_s + log_q
        log_s, log_q = raised.clamp(max=0), raised.clamp(min=0)
    return _whole(log_s.exp(), *weight.shape)


def _optimum(tile: Tensor, n: int) -> float:
    """Largest kept sum of a tile: the vertices of the linear program are 0/1."""
    # scipy has no types, and comes only with the extras that need it.
    optimize = importlib.import_module("scipy.optimize")
    sparse = importlib.import_module("scipy.sparse")
    m = tile.shape[0]
    ones, unit = np.ones((1, m)), sparse.eye(m)
    sums = sparse.vstack([sparse.kron(unit, ones), sparse.kron(ones, unit)]).tocsr()
    solved = optimize.linprog(
        -tile.numpy().ravel(), A_eq=sums, b_eq=np.full(2 * m, n), bounds=(0, 1), method="highs"
    )
    if solved.status != 0:
        raise WrongResultError(f"the linear program of a tile failed: {solved.message}")
    return -float(solved.fun)
