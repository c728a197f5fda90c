"""Proximal operators alone: ``pytest bench/bench_prox.py``. What is timed was verified first.

`gossamer bench --only prox` measures the same calls interleaved, which is what its ratios are
taken from; this suite is for watching Gossamer's own operators over time with pytest-benchmark.
"""

from dataclasses import replace

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from gossamer import timing
from gossamer.bench import prox_compare
from gossamer.bench.cases import GOSSAMER
from gossamer.bench.compare import Plan
from gossamer.bench.prox_bars import GROWTH
from gossamer.bench.prox_cases import FULL
from gossamer.bench.prox_contest import TOLERANCE, check_answer
from gossamer.bench.results import Key

PLAN = Plan(prox=replace(FULL, groups=(1_000_000,), entries=(1_000_000,)))
CONTESTS = [one for one in prox_compare.prox_contests(PLAN) if one[0][0] != GROWTH]


def name(key: Key) -> str:
    return ", ".join(map(str, key))


@pytest.mark.parametrize(("key", "build"), CONTESTS, ids=[name(key) for key, _ in CONTESTS])
def test_operator(benchmark: BenchmarkFixture, key: Key, build: prox_compare.Build) -> None:
    with timing.threads(key[4]):
        contest = build(key)
        entrant = contest.entrants[GOSSAMER]()
        entrant.before()
        answer = entrant.answer(entrant.run())
        check_answer(GOSSAMER, answer, contest.expected(), TOLERANCE[key[3]])
        benchmark.group = name(key)
        benchmark.pedantic(entrant.run, setup=entrant.before, rounds=15, warmup_rounds=1)
