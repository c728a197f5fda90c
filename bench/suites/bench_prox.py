"""Proximal operators alone: ``pytest bench/suites/bench_prox.py``. They are verified first.

`python -m bench prox` measures the same calls interleaved, which is what its ratios are
taken from; this suite is for watching Gossamer's own operators over time with pytest-benchmark.
"""

from dataclasses import replace

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.harness.contest import TOLERANCE, check_answer
from bench.harness.record import GOSSAMER, Key
from bench.prox import jobs
from bench.prox.bars import GROWTH
from bench.prox.cases import FULL
from bench.prox.step import Build
from gossamer import timing

PLAN = replace(FULL, scope=replace(FULL.scope, groups=(1_000_000,), entries=(1_000_000,)))
CONTESTS = [one for one in jobs.prox_contests(PLAN) if one[0][0] != GROWTH]


def name(key: Key) -> str:
    return ", ".join(map(str, key))


@pytest.mark.parametrize(("key", "build"), CONTESTS, ids=[name(key) for key, _ in CONTESTS])
def test_operator(benchmark: BenchmarkFixture, key: Key, build: Build) -> None:
    with timing.threads(key[4]):
        contest = build(key)
        entrant = contest.entrants[GOSSAMER]()
        entrant.before()
        answer = entrant.answer(entrant.run())
        check_answer(GOSSAMER, answer, contest.expected(), TOLERANCE[key[3]])
        benchmark.group = name(key)
        benchmark.pedantic(entrant.run, setup=entrant.before, rounds=15, warmup_rounds=1)  # type: ignore[no-untyped-call]
