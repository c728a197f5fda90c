"""The proximal bench and the digits experiment. No test depends on a time or on who wins."""

import gc
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from bench.cli import TOPICS
from bench.harness import contest as contests
from bench.harness.contest import (
    Contest,
    Entrant,
    StillRunningError,
    UnavailableError,
    WrongResultError,
)
from bench.harness.plan import Job
from bench.harness.record import GOSSAMER, Quartiles, Record
from bench.harness.results import Results
from bench.harness.tables import publish
from bench.prox import bars, cases, jobs, picture, rivals, step, tables
from bench.prox.bars import (
    CONVEX,
    COUNT,
    EAGER,
    ELEMENTS,
    ENTRIES,
    FEWER,
    FUSED,
    GAINS,
    GROUPED,
    GROWTH,
    MODOPT,
    NUMPY,
    NUMPY_EQUAL,
    PASSES,
    PYPROXIMAL,
    SCALE,
    SELECTION,
    STEP,
    UNBIASED,
)
from bench.prox.cases import FULL, QUICK
from gossamer import timing

MACHINE: dict[str, Any] = {
    "cpu": "AMD Test", "cores": 2, "caches": {"L2": "1024K"}, "isa": "avx512",
    "system": "Linux x", "versions": {"modopt": "1.7"},
}  # fmt: skip
TINY = replace(QUICK, seconds=0.0, rounds=(2, 2))


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A garbage collection before each timing takes longer than all that is timed here."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def made(
    topic: str,
    ours: float,
    theirs: dict[str, float] | None = None,
    shape: str = "1000000",
    pattern: str = CONVEX,
    dtype: str = "float64",
    threads: int = 1,
    floors: dict[str, float] | None = None,
) -> Record:
    times = {GOSSAMER: ours} | (theirs or {})
    return Record(
        topic, shape, pattern, dtype, threads, 1.0, GOSSAMER,
        COUNT if topic == PASSES else "s",
        {name: Quartiles.exactly(value) for name, value in times.items()},
        {name: Quartiles.exactly(value / ours) for name, value in (theirs or {}).items()},
        skipped=dict.fromkeys(floors or {}, "not done after 10 s"),
        floors=floors or {},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("record", "met"),
    [
        (made(PASSES, 12), True),
        (made(PASSES, 13), False),
        (made(GROWTH, 13.0, {FEWER: 1.0}), True),
        (made(GROWTH, 13.1, {FEWER: 1.0}), False),
        (made(GAINS, 1.0, {NUMPY: 10.0, NUMPY_EQUAL: 1.0}), True),
        (made(GAINS, 1.0, {NUMPY: 9.9}), False),
        (made(GROUPED, 1.0, {NUMPY: 9.9}, "1000000x8"), False),
        (made(ENTRIES, 1.0, {MODOPT: 10.0, NUMPY: 1.0}), True),
        (made(ENTRIES, 1.0, {MODOPT: 9.0}, threads=2), False),
        (made(ENTRIES, 1.0, {PYPROXIMAL: 9.0}, pattern=UNBIASED), False),
        (made(ENTRIES, 1.0, pattern=UNBIASED, floors={PYPROXIMAL: 10.0}), True),
        (made(ENTRIES, 1.1, pattern=UNBIASED, floors={PYPROXIMAL: 10.0}), None),
        (made(ELEMENTS, 1.0, {SCALE: 0.6}, "10000000", "l1", "float32"), True),
        (made(ELEMENTS, 1.0, {SCALE: 0.59}, "10000000", "l0"), False),
        (made(ELEMENTS, 1.0, {SCALE: 0.1, EAGER: 5.0}, "10000000", "lp, p = 0.4"), True),
        (made(ELEMENTS, 1.0, {SCALE: 0.1, EAGER: 4.9}, "10000000", "lp, p = 0.4"), False),
        (made(STEP, 1.25, {FUSED: 1.0}, "GPT", "l1"), True),
        (made(STEP, 1.26, {FUSED: 1.0}, "10000000", "l1"), False),
    ],
)
def test_bars(record: Record, met: bool | None) -> None:
    (verdict,) = bars.verdicts([record])
    assert verdict.met is met


def test_what_has_no_bar() -> None:
    rows = [
        made(GAINS, 1.0, {NUMPY: 1.0}, "100000"),
        made(ELEMENTS, 1.0, {SCALE: 0.1, EAGER: 1.0}, "100000", "l1"),
        made(ELEMENTS, 1.0, {SCALE: 0.1, EAGER: 1.0}, "10000000", "mcp"),
        made(SELECTION, 1.0, {"NumPy sort": 0.1}),
        made(ENTRIES, 1.0, {NUMPY: 0.1}),
    ]
    assert bars.verdicts(rows) == []


def test_tables_and_picture(tmp_path: Path) -> None:
    rows = [
        made(GAINS, 0.002, {NUMPY: 0.5, NUMPY_EQUAL: 0.014}),
        made(ENTRIES, 0.002, {NUMPY: 0.5}, pattern=UNBIASED, floors={PYPROXIMAL: 10.0}),
        made(PASSES, 14),
        made(ELEMENTS, 1e-3, {SCALE: 8e-4, EAGER: 2e-3}, "10000000", "l1", "float32"),
    ]
    found = Results(tmp_path / "r.json", MACHINE, {"quick": False}, ["abc"], rows)
    markdown = publish(tables.page(found), found.path, Console(file=StringIO()))
    written = [found.path, markdown, *picture.draw(found)]
    assert [path.name for path in written] == ["r.json", "r.md", "r.png"]
    text = written[1].read_text()
    assert "| convex | 1000000 | float64 | 1 | 2 ms | 500 ms (250×) | 14 ms (7×) |" in text
    assert "– (not done after 10 s)" in text
    assert "| 1 ms, 80 GB/s | 800 µs (0.8×), 100 GB/s | 2 ms (2×) |" in text
    assert "| > 5000× ✓ |" in text
    assert "3 of 4 bars met (✓), 1 missed (✗), 0 undecided (?)" in text
    assert (
        f"- missed: {PASSES}, convex, 1000000, float64, threads: 1: at most 12 passes: 14" in text
    )
    assert written[2].read_bytes().startswith(b"\x89PNG")
    assert picture.shares(rows) == {"l1": {GOSSAMER: 0.8, EAGER: 0.4}}
    assert picture.lines(rows)[NUMPY] == {1_000_000: 0.5}


def test_the_plan_covers_the_bars() -> None:
    planned = list(jobs.prox_jobs(FULL))
    keys = [key for job in planned for key in job.keys]
    assert len(set(keys)) == len(keys)
    for bar in bars.BARS:
        against = dict.fromkeys(bar.against, 1.0)
        records = [made(topic, 1.0, against, *rest) for topic, *rest in keys]
        threads = {v.record.threads for v in bars.verdicts(records) if v.bar is bar}
        assert threads == {1, 2}, bar.words


def quick_jobs() -> list[Job]:
    return list(jobs.prox_jobs(TINY))


@pytest.mark.parametrize("job", quick_jobs(), ids=lambda job: job.title)
def test_quick_jobs_run_and_are_right(job: Job) -> None:
    errors: list[str] = []
    with timing.threads(1):
        records = job.run(errors)
    assert not errors
    assert [record.key for record in records] == job.keys
    assert all(GOSSAMER in record.measured for record in records)


def contest(entrants: dict[str, Any], expected: Any) -> Contest:
    return Contest(("t", "3", "p", "float64", 1), entrants, lambda: np.asarray(expected))


def test_who_is_wrong_absent_or_slow_gets_no_time() -> None:
    def absent() -> Entrant:
        raise UnavailableError("not installed: pip install it")

    def sleepy() -> Any:
        while True:
            time.sleep(0.01)

    right = [0.0, 1.0, 2.0]
    entrants = {
        GOSSAMER: lambda: Entrant(lambda: right),
        "wrong": lambda: Entrant(lambda: [0.0, 1.0, 2.1]),
        "nan": lambda: Entrant(lambda: [0.0, 1.0, float("nan")]),
        "shape": lambda: Entrant(lambda: [0.0]),
        "absent": absent,
        "slow": lambda: Entrant(sleepy),
        "unjudged": lambda: Entrant(lambda: None, judged=False),
    }
    plan = replace(TINY, limit=0.1)
    record = contests.measure(plan, contest(entrants, right), errors := [])
    assert set(record.measured) == {GOSSAMER, "unjudged"}
    assert set(record.skipped) == {"wrong", "nan", "shape", "absent", "slow"}
    assert record.floors == {"slow": 0.1}
    assert [error.split(",")[0] for error in errors] == ["wrong", "nan", "shape"]


def test_a_wrong_gossamer_ends_the_job() -> None:
    entrants = {GOSSAMER: lambda: Entrant(lambda: [0.0, 1.0, 2.0])}
    with pytest.raises(WrongResultError, match="wrong at 1 of 3"):
        contests.measure(TINY, contest(entrants, [0.0, 1.0, 2.001]), [])


def test_numbers_are_put_back_outside_of_the_time() -> None:
    x, seen = np.zeros(3), []

    def run() -> Any:
        seen.append(x.copy())
        x[:] += 1
        return x

    def restore() -> None:
        time.sleep(0.002)
        x[:] = 0

    entrants = {GOSSAMER: lambda: Entrant(run, restore)}
    record = contests.measure(TINY, contest(entrants, np.ones(3)), [])
    assert len(seen) > 2
    assert not np.any(seen)
    assert record.measured[GOSSAMER].median < 0.002


def test_an_alarm_of_somebody_else_goes_on() -> None:
    def outlast_the_inner_one() -> None:
        with pytest.raises(StillRunningError, match=r"after 0\.02 s"):
            endless(0.02)
        endless(None)

    def endless(limit: float | None) -> None:
        with contests.stopped_after(limit):
            time.sleep(60)

    with pytest.raises(StillRunningError, match=r"after 0\.1 s"), contests.stopped_after(0.1):
        outlast_the_inner_one()


@pytest.mark.parametrize("weighted", [False, True])
def test_the_sorting_rival_solves_wgsef(weighted: bool) -> None:
    """By its conditions: shares follow from one eta, and spend the whole budget."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        m, lam = int(rng.integers(2, 40)), float(10 ** rng.uniform(-3, 2))
        norms = rng.random(m) * (rng.random(m) > 0.2)
        d, c = (rng.uniform(0.5, 2, m) for _ in range(2)) if weighted else (np.ones(m),) * 2
        k = rng.uniform(0.1, 1) * c.sum()
        gains = rivals.wgsef_gains(norms, k, lam, *((d, c) if weighted else ()))
        if not weighted:
            np.testing.assert_allclose(
                rivals.wgsef_gains_equal(norms, k, lam), gains, rtol=1e-9, atol=1e-12
            )
        share = gains * lam * d / (1 - gains)
        active = norms > 0
        assert c @ share == pytest.approx(min(k, c[active].sum()))
        assert not gains[~active].any()
        inner = (share > 1e-9) & (share < 1 - 1e-9)
        etas = (share + lam * d)[inner] / (norms * np.sqrt(lam * d / c))[inner]
        np.testing.assert_allclose(etas, etas[0] if len(etas) else 0, rtol=1e-6)


@pytest.mark.parametrize("operator", FULL.scope.operators, ids=cases.operator_text)
def test_eager_formulas_are_minima(operator: cases.Operator) -> None:
    values: dict[str, Any] = {
        "l1": lambda z, lam: lam * z,
        "l0": lambda z, lam: lam * (z > 0),
        "lp": lambda z, p, lam: lam * z**p,
        "elastic net": lambda z, lam, rho: lam * (rho * z + (1 - rho) * z**2 / 2),
        "mcp": lambda z, lam, g: np.where(z <= g * lam, lam * z - z**2 / (2 * g), g * lam**2 / 2),
        "scad": lambda z, lam, g: np.where(
            z <= lam,
            lam * z,
            np.where(
                z <= g * lam,
                (2 * g * lam * z - z**2 - lam**2) / (2 * (g - 1)),
                lam**2 * (g + 1) / 2,
            ),
        ),
        "capped l1": lambda z, lam, t: lam * np.minimum(z, t),
        "transformed l1": lambda z, lam, a: lam * (a + 1) * z / (a + z),
        "log-sum": lambda z, lam, eps: lam * np.log1p(z / eps),
    }
    name, parameters = operator
    grid = np.linspace(0, 4, 20_001)
    x = torch.linspace(-3.7, 3.9, 173, dtype=torch.float64)
    found = rivals.eager(operator)(x).numpy()
    for given, z in zip(x.numpy(), found, strict=True):
        assert z * given >= 0
        reached = (abs(z) - abs(given)) ** 2 / 2 + values[name](abs(z), *parameters)
        best = ((grid - abs(given)) ** 2 / 2 + values[name](grid, *parameters)).min()
        assert reached <= best + 1e-9


def test_projections_and_selection_agree_between_libraries() -> None:
    x = torch.randn(200, dtype=torch.float64)
    for name, argument in (("top_k", 20), ("simplex", 3.0), ("l1_ball", 5.0)):
        ours = getattr(rivals, f"{name}_numpy")(x.numpy(), argument)
        theirs = getattr(rivals, f"{name}_torch")(x, argument)
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-12)
    assert rivals.simplex_numpy(x.numpy(), 3.0).sum() == pytest.approx(3)
    assert np.abs(rivals.l1_ball_numpy(x.numpy(), 5.0)).sum() == pytest.approx(5)


def test_parameter_lists() -> None:
    shapes = step.sizes_of(step.GPT_LIST)
    assert sum(shape.numel() for shape in shapes) > 1e6
    assert len(shapes) > 10
    assert step.sizes_of("123") == [torch.Size([123])]


def test_interleaved_calls_what_comes_before() -> None:
    calls: list[str] = []
    fns = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    timing.interleaved(fns, repeats=3, warmup=1, before={"a": lambda: calls.append("before a")})
    assert calls.count("a") == calls.count("before a") == calls.count("b") == 4
    assert all(calls[i - 1] == "before a" for i, name in enumerate(calls) if name == "a")


def test_the_command_line_knows_the_part() -> None:
    assert jobs.GROUP in TOPICS
