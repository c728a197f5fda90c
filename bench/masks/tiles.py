"""Transposable masks: seconds beside eager torch, and kept magnitude beside the optimum."""

import importlib
import importlib.util
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bench.harness.bars import Bar
from bench.harness.contest import WrongResultError
from bench.harness.plan import Calls, Job, Plan, time_together
from bench.harness.record import GOSSAMER, Key, Quartiles, Record
from bench.harness.training import SEED
from bench.masks.selection import Scope
from gossamer.masks import TileMethod, is_transposable, transposable_mask

GROUP = "tiles"
MASK, QUALITY = "transposable_mask", "kept magnitude of the optimum's"
# What the literature gives for 8192 x 8192 at 8:16 on a CPU, on another machine, in seconds.
FLOW, GREEDY = "minimum-cost flow, as published", "two_approximation, as published"
_PUBLISHED = {FLOW: 350.0, GREEDY: 3.23}
_EAGER: dict[TileMethod, tuple[int, int, str]] = {
    "exact": (2, 4, "eager torch: product with the 90 tiles"),
    "two_approximation": (8, 16, "eager torch: topk of rows and columns"),
    "entropy": (8, 16, "eager torch: logsumexp, no rounding"),
}
_WHOLE: tuple[TileMethod, ...] = ("two_approximation", "greedy", "entropy")
_SIZES = ((2, 4), (4, 8), (2, 8), (8, 16))
BARS = (
    *(
        Bar(f"{MASK}, {method}", (rival,), 1.0, words=f"no slower than {rival}")
        for method, rivals in {
            "exact": (_EAGER["exact"][2],),
            "two_approximation": (_EAGER["two_approximation"][2], GREEDY),
            "entropy": (_EAGER["entropy"][2], FLOW),
            "greedy": (GREEDY,),
        }.items()
        for rival in rivals
    ),
    Bar(f"{QUALITY}, exact", (), 1 - 1e-9, "least", words="the optimum"),
    Bar(f"{QUALITY}, entropy", (), 0.97, "least", words="≥ 97 % of the optimum"),
)


def jobs(plan: Plan[Scope]) -> Iterator[Job]:
    """Seconds of each method with every number of threads, then at full size, then quality."""
    size = plan.scope.tiles
    for threads in plan.threads:
        for method, (n, m, _) in _EAGER.items():
            key = _key(f"{MASK}, {method}", size, n, m, threads)
            measure = partial(_against_torch, plan, method, key)
            yield Job(GROUP, f"{key[0]}, {key[2]}, threads: {threads}", threads, [key], measure)
    most = plan.threads[-1]
    if size := plan.scope.whole:
        keys = [_key(f"{MASK}, {method}", size, 8, 16, most) for method in _WHOLE]
        yield Job(GROUP, f"{MASK}, {keys[0][1]}", most, keys, partial(_at_full_size, plan, keys))
    if importlib.util.find_spec("scipy"):
        for n, m in _SIZES:
            keys = [
                _key(f"{QUALITY}, {method}", plan.scope.quality * m, n, m, most)
                for method in _methods(m)
            ]
            yield Job(GROUP, f"quality, {n}:{m}", most, keys, partial(_quality, plan, n, m, keys))


def _key(topic: str, size: int, n: int, m: int, threads: int) -> Key:
    return (topic, f"{size}x{size}", f"{n}:{m}", "float32", threads)


def _methods(m: int) -> tuple[TileMethod, ...]:
    exact: tuple[TileMethod, ...] = ("exact",) if m == 4 else ()
    return (*exact, "entropy", "greedy", "two_approximation")


def _against_torch(
    plan: Plan[Scope], method: TileMethod, key: Key, errors: list[str]
) -> list[Record]:
    references: dict[TileMethod, Callable[[Tensor, int, int], Tensor]] = {
        "exact": _torch_exact,
        "two_approximation": _torch_meet,
        "entropy": _torch_entropy,
    }
    n, m, rival = _EAGER[method]
    size, reference = plan.scope.tiles, references[method]
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(SEED))
    mask, theirs = transposable_mask(weight, n, m, method), reference(weight, n, m)
    # Rounding to whole entries is left out of what the rival of the entropy method does.
    if not is_transposable(mask, n, m) or (
        method != "entropy" and _kept(weight, mask) < _kept(weight, theirs) * (1 - 1e-6)
    ):
        raise WrongResultError(f"{MASK}, {method}: wrong mask at {n}:{m}")
    calls: Calls = {
        GOSSAMER: partial(transposable_mask, weight, n, m, method),
        rival: partial(reference, weight, n, m),
    }
    return [Record.timed(key, time_together(plan, calls), density=n / m)]


def _at_full_size(plan: Plan[Scope], keys: list[Key], errors: list[str]) -> list[Record]:
    size, n, m = plan.scope.whole, 8, 16
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(SEED))
    calls: Calls = {name: partial(transposable_mask, weight, n, m, name) for name in _WHOLE}
    for call in calls.values():
        call()
    timings = time_together(plan, calls)
    found = []
    for key, name in zip(keys, _WHOLE, strict=True):
        own, rival = Quartiles.of(timings[name]), FLOW if name == "entropy" else GREEDY
        theirs = Quartiles.exactly(_PUBLISHED[rival])
        ratio = Quartiles.exactly(theirs.median / own.median)
        measured = {GOSSAMER: own, rival: theirs}
        found.append(Record(*key, n / m, GOSSAMER, "s", measured, {rival: ratio}))
    return found


def _quality(plan: Plan[Scope], n: int, m: int, keys: list[Key], errors: list[str]) -> list[Record]:
    """Kept magnitude over the optimum's, which a linear program finds; Gaussian weights."""
    size = plan.scope.quality * m
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(m + n))
    best = sum(_optimum(tile, n) for tile in _tiles(weight, m).abs().double())
    found = []
    for key, name in zip(keys, _methods(m), strict=True):
        share = _kept(weight, transposable_mask(weight, n, m, name)) / best
        measured = {GOSSAMER: Quartiles.exactly(share)}
        found.append(Record(*key, n / m, GOSSAMER, "of the optimum", measured, {}))
    return found


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
