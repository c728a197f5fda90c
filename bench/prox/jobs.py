"""Measure Gossamer's proximal operators beside NumPy, eager torch, ModOpt and pyproximal."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.harness.contest import Contest, Entrant, measure, package
from bench.harness.plan import Job, Plan
from bench.harness.record import GOSSAMER, Key, Quartiles, Record
from bench.prox import rivals
from bench.prox.bars import (
    CONVEX,
    COUNT,
    EAGER,
    ELEMENTS,
    ENTRIES,
    FEWER,
    GAINS,
    GROUPED,
    GROWTH,
    MODOPT,
    NUMPY,
    NUMPY_EQUAL,
    NUMPY_SORT,
    PASSES,
    PYPROXIMAL,
    SCALE,
    SELECTION,
    TORCH_SORT,
    UNBIASED,
)
from bench.prox.cases import (
    GROUP_SIZE,
    STRENGTH,
    Operator,
    Scope,
    dtype_text,
    kept,
    normal,
    operator_text,
)
from bench.prox.step import Build, step_contests
from gossamer import prox

GROUP = "prox"
# ModOpt ends its search at this distance from the budget.
MODOPT_TOLERANCE = 1e-4
# Entries whose right answers are computed at once.
PART = 1_000_000


def prox_jobs(plan: Plan[Scope]) -> Iterator[Job]:
    """Everything of the proximal part, with every number of threads."""
    for threads in plan.threads:
        yield _passes_job(plan.scope.groups, threads)
    for at, build in prox_contests(plan):
        yield _job(plan, at, build)


def prox_contests(plan: Plan[Scope]) -> Iterator[tuple[Key, Build]]:
    """All that is timed.

    Args:
        plan: how much.

    Yields:
        The key of a record, and what makes its contest.
    """
    scope = plan.scope
    for threads in plan.threads:
        for m in scope.groups:
            yield (GAINS, str(m), CONVEX, "float64", threads), partial(_gains, m)
            shape = f"{m}x{GROUP_SIZE}"
            yield (GROUPED, shape, CONVEX, "float32", threads), partial(_grouped, m)
        for m in scope.groups[1:]:
            yield (GROWTH, str(m), CONVEX, "float64", threads), partial(_growth, m)
        for m in scope.entries:
            for form in (CONVEX, UNBIASED):
                yield (ENTRIES, str(m), form, "float64", threads), partial(_entries, m, form)
        for count, dtype in scope.sizes:
            for one in scope.operators:
                at = (ELEMENTS, str(count), operator_text(one), dtype_text(dtype), threads)
                yield at, partial(_elements, one, count, dtype)
        for count in scope.selection:
            for name in ("top-k", "l1 ball", "simplex"):
                at = (SELECTION, str(count), name, "float64", threads)
                yield at, partial(_selection, name, count)
        yield from step_contests(scope.lists, threads)


def _job(plan: Plan[Scope], at: Key, build: Build) -> Job:
    topic, shape, pattern, dtype, threads = at
    title = f"{topic}, {shape}, {pattern}, {dtype}, threads: {threads}"
    return Job(GROUP, title, threads, [at], lambda errors: [measure(plan, build(at), errors)])


def _group_norms(m: int) -> Tensor:
    x = normal(m * GROUP_SIZE, torch.float64).view(m, GROUP_SIZE)
    norms: Tensor = torch.linalg.vector_norm(x, dim=1)
    return norms


def _gains(m: int, at: Key) -> Contest:
    norms = _group_norms(m)
    array, k = norms.numpy(), float(kept(m))
    entrants = {
        GOSSAMER: lambda: Entrant(lambda: prox.wgsef_gains(norms, k, STRENGTH)[0]),
        NUMPY: lambda: Entrant(lambda: rivals.wgsef_gains(array, k, STRENGTH)),
        NUMPY_EQUAL: lambda: Entrant(lambda: rivals.wgsef_gains_equal(array, k, STRENGTH)),
    }
    return Contest(at, entrants, lambda: rivals.wgsef_gains(array, k, STRENGTH))


def _grouped(m: int, at: Key) -> Contest:
    source = normal(m * GROUP_SIZE, torch.float32).view(m, GROUP_SIZE)
    x, k = source.clone(), kept(m)
    array = x.numpy()
    penalty = prox.WGSEF(k=k, lam=STRENGTH, groups="neuron")

    def numpy_version(gains: Callable[..., rivals.Array]) -> Entrant:
        run = partial(rivals.wgsef_in_place, array, lambda norms: gains(norms, k, STRENGTH))
        return Entrant(run, restore)

    def restore() -> None:
        x.copy_(source)

    def expected() -> Any:
        whole = source.double().numpy().copy()
        return rivals.wgsef_in_place(whole, lambda norms: rivals.wgsef_gains(norms, k, STRENGTH))

    entrants = {
        GOSSAMER: lambda: Entrant(lambda: penalty.prox_(x), restore),
        NUMPY: lambda: numpy_version(rivals.wgsef_gains),
        NUMPY_EQUAL: lambda: numpy_version(rivals.wgsef_gains_equal),
    }
    return Contest(at, entrants, expected)


def _passes_job(groups: tuple[int, ...], threads: int) -> Job:
    """Passes over the norms: counted by the operator itself, not timed."""
    keys = [(PASSES, str(m), CONVEX, "float64", threads) for m in groups]

    def count(_: list[str]) -> list[Record]:
        found = []
        for m, at in zip(groups, keys, strict=True):
            passes = prox.wgsef_gains(_group_norms(m), float(kept(m)), STRENGTH)[1]
            counted = Quartiles.exactly(float(passes))
            found.append(Record(*at, 1.0, GOSSAMER, COUNT, {GOSSAMER: counted}, {}))
        return found

    return Job(GROUP, f"{PASSES}, threads: {threads}", threads, keys, count)


def _growth(m: int, at: Key) -> Contest:
    """Gossamer beside itself with a tenth of the groups, which other tests found to be right."""
    entrants = {}
    for name, size in ((GOSSAMER, m), (FEWER, m // 10)):
        norms, k = _group_norms(size), float(kept(size))
        run = partial(prox.wgsef_gains, norms, k, STRENGTH)
        entrants[name] = partial(Entrant, run, judged=False)
    return Contest(at, entrants, lambda: None)


def _entries(m: int, form: str, at: Key) -> Contest:
    """Groups of one entry, which is what the rivals' operators are for."""
    source, k, lam = normal(m, torch.float64), kept(m), STRENGTH
    unbiased = form == UNBIASED
    penalty = prox.WGSEF(k=k, lam=lam, groups="element", unbiased=unbiased)
    x, array = source.clone(), source.numpy()
    # lam (GS - |x|^2 / 2) is the operator of lam / (1 - lam) GS at x / (1 - lam).
    grow, strength = (1 / (1 - lam), lam / (1 - lam)) if unbiased else (1.0, lam)

    def numpy_version() -> Any:
        grown = array * grow
        return grown * rivals.wgsef_gains(np.abs(grown), k, strength)

    def modopt() -> Entrant:
        operator = package("modopt.opt.proximity", "KSupportNorm", "modopt")(lam, k)
        return Entrant(lambda: operator.op(array), tolerance=MODOPT_TOLERANCE)

    def pyproximal() -> Entrant:
        operator = package("pyproximal", "QuadraticEnvelopeCardIndicator", "pyproximal")(k)
        return Entrant(lambda: operator.prox(array, lam))

    entrants = {
        GOSSAMER: lambda: Entrant(lambda: penalty.prox_(x), lambda: x.copy_(source)),
        NUMPY: lambda: Entrant(numpy_version),
        **({PYPROXIMAL: pyproximal} if unbiased else {MODOPT: modopt}),
    }
    return Contest(at, entrants, numpy_version)


PENALTIES: dict[str, Callable[..., Any]] = {
    "l1": prox.L1,
    "l0": prox.L0,
    "lp": lambda p, lam: prox.Lp(lam=lam, p=p),
    "elastic net": prox.ElasticNet,
    "mcp": prox.MCP,
    "scad": prox.SCAD,
    "capped l1": prox.CappedL1,
    "transformed l1": prox.TransformedL1,
    "log-sum": prox.LogSum,
}


def _elements(operator: Operator, count: int, dtype: torch.dtype, at: Key) -> Contest:
    """In place on a fresh copy; eager torch gives a new tensor and is not charged for a copy back.

    The scale multiplies by a number in place: it reads and writes each entry once, like l1.
    """
    source = normal(count, dtype)
    x, (name, parameters) = source.clone(), operator
    penalty, formula = PENALTIES[name](*parameters), rivals.eager(operator)

    def restore() -> None:
        x.copy_(source)

    entrants = {
        GOSSAMER: lambda: Entrant(lambda: penalty.prox_(x), restore),
        SCALE: lambda: Entrant(lambda: x.mul_(0.999), restore, judged=False),
        EAGER: lambda: Entrant(lambda: formula(x), restore),
    }

    def expected() -> Tensor:
        # In parts: the formula in float64 keeps a dozen arrays.
        starts = range(0, count, PART)
        return torch.cat([formula(source[start : start + PART].double()) for start in starts])

    return Contest(at, entrants, expected)


def _selection(name: str, count: int, at: Key) -> Contest:
    source = normal(count, torch.float64)
    x, array, k, radius = source.clone(), source.numpy(), count // 10, count / 100
    choices: dict[str, tuple[prox.Penalty, Callable[[], Any], Callable[[], Any]]] = {
        "top-k": (
            prox.TopK(k),
            lambda: rivals.top_k_numpy(array, k),
            lambda: rivals.top_k_torch(source, k),
        ),
        "l1 ball": (
            prox.L1Ball(radius),
            lambda: rivals.l1_ball_numpy(array, radius),
            lambda: rivals.l1_ball_torch(source, radius),
        ),
        "simplex": (
            prox.Simplex(radius),
            lambda: rivals.simplex_numpy(array, radius),
            lambda: rivals.simplex_torch(source, radius),
        ),
    }
    penalty, numpy_version, torch_version = choices[name]
    entrants = {
        GOSSAMER: lambda: Entrant(lambda: penalty.prox_(x), lambda: x.copy_(source)),
        NUMPY_SORT: lambda: Entrant(numpy_version),
        TORCH_SORT: lambda: Entrant(torch_version),
    }
    return Contest(at, entrants, numpy_version)
