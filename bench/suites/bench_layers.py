"""Layers beside their rivals: ``pytest bench/suites/bench_layers.py``. All are verified first.

`python -m bench layers` measures the same cases interleaved, and takes its ratios from that; this
suite is for watching one candidate over time with pytest-benchmark's own tools.
"""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.harness.contest import UnavailableError
from bench.harness.record import GOSSAMER
from bench.layers import cases
from bench.layers.bars import BOTH, FORWARD
from bench.layers.cases import NN_LINEAR, Case, Shape
from bench.layers.jobs import runners
from bench.layers.rivals import candidate, verify
from gossamer import timing

CANDIDATES = [
    (pattern, name)
    for pattern in cases.PATTERNS
    for name in (NN_LINEAR, GOSSAMER, *cases.rivals_of(pattern))
    # The dense layer costs the same whatever the pattern.
    if name != NN_LINEAR or pattern == cases.PATTERNS[0]
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("topic", [FORWARD, BOTH])
@pytest.mark.parametrize(("pattern", "name"), CANDIDATES)
@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
def test_layer(
    benchmark: BenchmarkFixture, shape: Shape, pattern: str, name: str, topic: str, threads: int
) -> None:
    problem = cases.build(Case(shape, pattern))
    with timing.threads(threads):
        try:
            one = candidate(name, problem)
        except UnavailableError as reason:
            pytest.skip(str(reason))
        verify(one, problem, backward=topic == BOTH)
        benchmark.group = f"{topic} {shape}, threads: {threads}"
        benchmark(runners([one], problem, topic)[name])
