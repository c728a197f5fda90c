"""The transport bench: bars, who gets a time, problems, tables. No test depends on a time."""

from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bench.harness.bars import FAILED, GAVE_UP, STOPPED
from bench.harness.contest import StillRunningError
from bench.harness.process import FailedError, Worker, environment
from bench.harness.record import GOSSAMER, Quartiles, Record
from bench.harness.results import Results
from bench.harness.tables import publish
from bench.transport import bars, marginals, pictures, session, tables
from bench.transport import cases as ot_cases
from bench.transport.bars import MEMORY, TRACE, TRANSPORT
from bench.transport.cases import (
    ASSIGNMENT,
    DIGITS_L1,
    DIGITS_L2,
    POINTS,
    PUBLISHED_CASE,
    TOLERANCE,
    Case,
    Scope,
)
from bench.transport.cases import FULL as FULL_PLAN
from bench.transport.cases import QUICK as QUICK_PLAN
from bench.transport.marginals import marginal_error
from bench.transport.session import Session
from bench.transport.solvers import (
    LAZY,
    POT,
    POT_LOG,
    PUBLISHED,
    REGOT,
    SOLVERS,
    Potentials,
    Solver,
)
from support import fake_solvers

pytestmark = [pytest.mark.slow, pytest.mark.process]

FULL = FULL_PLAN.scope
HARD = Case(POINTS, 1000, 2e-4)
SMALL = Case(POINTS, 12, 1e-1)
MACHINE: dict[str, Any] = {
    "cpu": "AMD Test", "cores": 2, "caches": {"L2": "1024K"}, "isa": "avx512",
    "system": "Linux x", "versions": {"POT": "0.9"},
}  # fmt: skip


def made(
    case: Case = HARD,
    ours: float | None = 1.0,
    threads: int = 1,
    skipped: dict[str, str] | None = None,
    floors: dict[str, float] | None = None,
    **seconds: float,
) -> Record:
    names = {"pot": POT, "log": POT_LOG, "regot": REGOT, "published": PUBLISHED, "ott": "ott-jax"}
    times = {names[short]: value for short, value in seconds.items()}
    own = {} if ours is None else {GOSSAMER: ours}
    return Record(
        *session.key(TRANSPORT, case, threads),
        1.0,
        GOSSAMER,
        "s",
        {name: Quartiles.exactly(value) for name, value in (own | times).items()},
        {name: Quartiles.exactly(value / ours) for name, value in times.items()} if ours else {},
        skipped=skipped or {},
        floors=floors or {},
        reached=dict.fromkeys(own | times, 1e-10),
    )


def judged(record: Record) -> dict[str, bool | None]:
    return {verdict.bar.words: verdict.met for verdict in bars.verdicts([record])}


@pytest.mark.parametrize(
    ("record", "bar", "met"),
    [
        (made(pot=10.0), "POT ≥ 10×", True),
        (made(pot=9.9), "POT ≥ 10×", False),
        (made(pot=50.0, log=9.9), "POT ≥ 10×", False),
        (made(regot=20.0), "regot ≥ 20×", True),
        (made(regot=19.0), "regot ≥ 20×", False),
        (made(Case(ASSIGNMENT, 1000, 2e-4), regot=2.5), "regot ≥ 2.5×", True),
        (made(Case(ASSIGNMENT, 1000, 2e-4), pot=49.0), "POT ≥ 50×", False),
        (made(Case(POINTS, 1000, 1e-3), pot=6.0), "POT ≥ 6×", True),
        (made(Case(DIGITS_L1, 1000, 1e-2), pot=0.84), "POT sinkhorn ≥ 0.833×", True),
        (made(Case(ASSIGNMENT, 1000, 1e-3), pot=0.83), "POT sinkhorn ≥ 0.833×", False),
        (made(PUBLISHED_CASE, pot=30.0), "POT sinkhorn ≥ 30×", True),
        (made(PUBLISHED_CASE, published=0.9), "literal method ≥ 1×", False),
        (made(Case(POINTS, 500, 1e-2), ott=0.99), "no rival faster (ott-jax)", False),
        (made(Case(POINTS, 500, 1e-2), ott=2.0, pot=1.0), "no rival faster (POT sinkhorn)", True),
    ],
)
def test_bars(record: Record, bar: str, met: bool) -> None:
    assert judged(record)[bar] is met


def test_a_rival_that_gave_up_is_never_a_number() -> None:
    """However fast it was: it neither meets nor misses; if nobody solves the case, it is met."""
    gave_up = {POT: f"{GAVE_UP} at an L1 error of 1.0e+00"}
    assert judged(made(log=9.0, skipped=gave_up))["POT ≥ 10×"] is False
    both = gave_up | {POT_LOG: f"{FAILED}: died"}
    (verdict,) = bars.verdicts([made(skipped=both)])
    assert (verdict.met, verdict.value) == (True, inf)
    assert verdict.text == "nobody else solves it"


def test_a_stopped_rival_meets_a_bar_by_how_long_it_ran() -> None:
    stopped = {REGOT: f"{STOPPED} after 21 s"}
    enough = made(skipped=stopped, floors={REGOT: 21.0})
    (verdict,) = bars.verdicts([enough])
    assert (verdict.met, verdict.value, verdict.floor) == (True, 21.0, True)
    assert (verdict.bar.words, verdict.text) == ("regot ≥ 20×", "> 21×")
    assert judged(made(skipped=stopped, floors={REGOT: 19.0}))["regot ≥ 20×"] is None
    assert judged(made(skipped=stopped))["regot ≥ 20×"] is None
    # One that solves it and is not far enough behind decides, whatever the other would do.
    two = made(pot=5.0, skipped={POT_LOG: stopped[REGOT]}, floors={POT_LOG: 3.0})
    assert judged(two)["POT ≥ 10×"] is False


def test_absent_rivals_are_not_judged() -> None:
    absent = {POT: "not installed: pip install POT", POT_LOG: "not installed: pip install POT"}
    assert judged(made(skipped=absent)) == {}


def test_an_unsolved_cell_misses_everything() -> None:
    found = judged(made(ours=None, pot=100.0, skipped={GOSSAMER: f"{GAVE_UP} at"}))
    assert found["converges"] is False
    assert found["POT ≥ 10×"] is False


def test_bars_speak_of_one_thread() -> None:
    assert judged(made(threads=2, pot=1.0)) == {}


def test_memory() -> None:
    at = session.key(MEMORY, FULL.large, 2)
    for held, met in ((9.9e8, True), (1e9, False)):
        record = Record(*at, 1.0, LAZY, "B", {LAZY: Quartiles.exactly(held)}, {})
        assert judged(record) == {"memory < 1 GB": met}
    assert judged(Record(*at, 1.0, LAZY, "B", {}, {}, skipped={LAZY: "x"})) == {
        "memory < 1 GB": False
    }


def test_the_plan_covers_the_table() -> None:
    families = {ASSIGNMENT, POINTS} | ({DIGITS_L1, DIGITS_L2} if ot_cases.has_digits() else set())
    wanted = {
        Case(f, n, reg) for f in families for n in (500, 1000, 2000) for reg in (1e-2, 1e-3, 2e-4)
    }
    jobs = list(session.transport_jobs(FULL_PLAN))
    keys = [key for job in jobs for key in job.keys]
    assert len(set(keys)) == len(keys)
    cases = {(key[1], key[2], key[4]) for key in keys if key[0] == TRANSPORT}
    assert {(c.shape, c.pattern, t) for c in wanted for t in (1, 2)} < cases
    assert len(FULL.seeds) == 3
    barred = [Case(f, 1000, reg) for f in (ASSIGNMENT, POINTS) for reg in FULL.regs]
    assert all(bars.bars_of(case) for case in barred)


def test_a_cell_survives_its_text() -> None:
    for case in (*FULL.cases, PUBLISHED_CASE):
        assert bars.case_of(made(case)) == case


@pytest.mark.parametrize("family", [ASSIGNMENT, POINTS, DIGITS_L1, DIGITS_L2])
def test_problems_are_scaled_balanced_and_the_same_each_time(family: str) -> None:
    if family in (DIGITS_L1, DIGITS_L2):
        pytest.importorskip("sklearn")
    case = Case(family, 60, 1e-2)
    problem, other = ot_cases.build(case, 0), ot_cases.build(case, 1)
    assert problem.cost.shape == (60, 60)
    assert 0.9 < problem.cost.max() <= 1
    assert problem.cost.min() >= 0
    assert problem.a.sum() == pytest.approx(1, abs=1e-14)
    assert problem.b.sum() == pytest.approx(1, abs=1e-14)
    assert problem.a.min() > 0
    assert not np.array_equal(problem.a @ problem.cost, other.a @ other.cost)
    ot_cases.build.cache_clear()
    assert all(map(np.array_equal, problem, ot_cases.build(case, 0)))


def test_enlarging_keeps_a_linear_picture() -> None:
    rows, columns = np.mgrid[0:8, 0:8]
    image = 2.0 * rows - columns
    bigger = ot_cases.enlarge(image, 15, 29)
    wanted = 2 * np.linspace(0, 7, 15)[:, None] - np.linspace(0, 7, 29)
    np.testing.assert_allclose(bigger, wanted, atol=1e-13)


def test_marginal_error() -> None:
    a, b = np.array([0.25, 0.75]), np.array([0.5, 0.5])
    plan = np.outer(a, b)
    assert marginal_error(plan, a, b) == 0
    assert marginal_error(plan * 2, a, b) == 2
    assert marginal_error(plan + np.array([[0.1, -0.1], [0, 0]]), a, b) == pytest.approx(0.2)
    assert marginal_error(plan.T[:1], a, b) == inf
    assert marginal_error(plan * np.nan, a, b) == inf
    assert marginal_error(plan - np.array([[1, -1], [-1, 1]]), a, b) == inf


def fake_session(*rivals: str, **changes: Any) -> Session:
    scope = replace(Scope(sizes=(12,), cap=(0.5,), seconds=0.0), **changes)
    solvers = {name: Solver(name) for name in rivals} | {GOSSAMER: Solver("right")}
    return Session(scope, solvers, fake_solvers.__file__)


def test_only_right_answers_get_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ot_cases.build(SMALL, 0).cost.sum()
    monkeypatch.setenv("FIRST_PROBLEM", repr(float(first)))
    rivals = (
        "slower",
        "careless",
        "nan",
        "negative",
        "endless",
        "stubborn",
        "raising",
        "dying",
        "second_fails",
    )
    fakes = fake_session(*rivals)
    (record,) = fakes.measure(SMALL, 1, rivals, errors := [])
    assert not errors
    assert set(record.measured) == {GOSSAMER, "slower"}
    assert set(record.ratios) == {"slower"}
    assert record.measured["slower"].median > 0.05
    assert set(record.skipped) == {*rivals} - {"slower"}
    assert record.skipped["careless"] == f"{GAVE_UP} at an L1 error of 2.0e-08"
    assert record.skipped["second_fails"] == f"{GAVE_UP} at an L1 error of 2.0e-08"
    assert record.skipped["nan"].startswith(GAVE_UP)
    assert record.skipped["negative"].startswith(GAVE_UP)
    assert record.skipped["endless"].startswith(f"{STOPPED} after")
    assert "ArithmeticError: underflow" in record.skipped["raising"]
    assert "ended with status 3" in record.skipped["dying"]
    assert record.reached[GOSSAMER] <= TOLERANCE
    # Two threads: who did not solve it is not tried again.
    (record,) = fakes.measure(SMALL, 2, rivals, errors)
    assert set(record.measured) == {GOSSAMER, "slower"}
    assert record.skipped["endless"].startswith("not tried; with fewer threads not done")


def test_a_wrong_gossamer_is_an_error_and_has_no_time() -> None:
    fakes = fake_session("slower")
    fakes.solvers = {GOSSAMER: Solver("careless"), "slower": Solver("slower")}
    (record,) = fakes.measure(SMALL, 1, ("slower",), errors := [])
    assert GOSSAMER not in record.measured
    assert not record.ratios
    assert "gave up at an L1 error of 2.0e-08" in errors[0]


def test_a_bar_needs_a_second_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """One stopped call says nothing about the median of three; two do."""
    fakes = fake_session("endless")
    (record,) = fakes.measure(SMALL, 1, ("endless",), [])
    assert record.floors == {}
    monkeypatch.setattr(session, "bound_on", lambda *_: 2.0)
    (record,) = fakes.measure(Case(POINTS, 12, 0.2), 1, ("endless",), [])
    assert record.floors["endless"] >= 0.5


def test_traces_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = fake_session("slower", "careless", tolerances=(1e-2, 1e-9))
    names = (GOSSAMER, "slower", "careless")
    monkeypatch.setattr(session, "TRACED", names)
    records = fakes.trace(SMALL, 1, errors := [])
    assert not errors
    assert [r.key for r in records] == [session.trace_key(SMALL, t, 1) for t in (1e-2, 1e-9)]
    assert set(records[0].measured) == {*names}
    assert set(records[1].measured) == {GOSSAMER, "slower"}
    assert records[0].reached[GOSSAMER] > records[1].reached[GOSSAMER]
    both = [made(Case(POINTS, n, 1e-2), ours=n * 1e-6, pot=n * 1e-5) for n in (500, 1000)]
    found = Results(tmp_path / "r.json", MACHINE, {"quick": True}, ["abc"], [*both, *records])
    assert pictures.sizes(both) == {
        (POINTS, 1e-2): {GOSSAMER: {500: 5e-4, 1000: 1e-3}, POT: {500: 5e-3, 1000: 1e-2}}
    }
    with open("/dev/null", "w") as sink:  # noqa: PTH123
        markdown = publish(tables.page(found), found.path, Console(file=sink))
    written = [found.path, markdown, *pictures.draw(found)]
    assert [p.name for p in written] == ["r.json", "r.md", "r-sizes.png", "r-errors.png"]
    for picture in written[2:]:
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_tables(tmp_path: Path) -> None:
    records = [
        made(
            pot=12.0,
            skipped={REGOT: f"{STOPPED} after 19 s", POT_LOG: f"{GAVE_UP} at"},
            floors={REGOT: 19.0},
        ),
        made(Case(POINTS, 500, 1e-2), pot=0.5),
    ]
    records[0].reached[POT_LOG] = 3e-3
    found = Results(tmp_path / "r.json", MACHINE, {"quick": False}, ["abc"], records)
    with open("/dev/null", "w") as sink:  # noqa: PTH123
        publish(tables.page(found), found.path, Console(file=sink))
    text = (tmp_path / "r.md").read_text()
    assert "| points | 0.0002 | 1000 | 1.00 s | 12.00 s (12×) | –, error 3e-03 |" in text
    assert "–, stopped at 19 s" in text
    assert "| points | 0.0002 | 1000 | POT ≥ 10× | 12× ✓ |" in text
    assert "| points | 0.0002 | 1000 | regot ≥ 20× | > 19× ? |" in text
    assert "2 of 4 bars met (✓), 1 missed (✗), 1 undecided (?)" in text
    assert "- missed: points, n = 500, reg 0.01: no rival faster (POT sinkhorn): 0.5×" in text
    assert "- undecided: points, n = 1000, reg 0.0002: regot ≥ 20×: > 19×" in text


@pytest.mark.parametrize(("function", "survives"), [("endless", True), ("stubborn", False)])
def test_a_worker_is_stopped_and_goes_on(function: str, survives: bool) -> None:
    worker = Worker(function, 1, fake_solvers.__file__, marginals.__file__)
    problem = ot_cases.build(SMALL, 0)
    worker.ask("load", 0, *problem, TOLERANCE)
    for _ in range(2):
        with pytest.raises(StillRunningError, match="still running"):
            worker.ask("solve", 0, limit=0.1)
        if not survives:
            with pytest.raises(FailedError, match="KeyError"):
                worker.ask("solve", 0)
            worker.ask("load", 0, *problem, TOLERANCE)
    assert worker.ask("memory", 0) > 1e6
    worker.kill()


def test_a_worker_without_its_function_says_so() -> None:
    with pytest.raises(FailedError, match="its process ended"):
        Worker("nobody", 1, fake_solvers.__file__, marginals.__file__).ask("memory", 0)


def test_threads_are_limited() -> None:
    assert environment(1)["OPENBLAS_NUM_THREADS"] == "1"
    assert environment(2)["OMP_NUM_THREADS"] == "2"


def test_points_are_judged_without_a_plan() -> None:
    rng = np.random.default_rng(0)
    x, y, f, g = rng.random((7, 2)), rng.random((5, 2)), rng.random(7), rng.random(5)
    plan = np.exp((f[:, None] + g - ((x[:, None] - y) ** 2).sum(2)) / 0.3)
    rows, columns = Potentials(x, y, f, g, 0.3).marginals()
    np.testing.assert_allclose(rows, plan.sum(1), rtol=1e-13)
    np.testing.assert_allclose(columns, plan.sum(0), rtol=1e-13)


def test_quick_is_everything_once() -> None:
    scope = QUICK_PLAN.scope
    assert set(scope.families) == set(FULL.families)
    assert {key[0] for job in session.transport_jobs(QUICK_PLAN) for key in job.keys} == {
        TRANSPORT, TRACE, bars.LARGE, MEMORY
    }  # fmt: skip
    assert all(name in SOLVERS for name in (POT, POT_LOG, REGOT, PUBLISHED))
