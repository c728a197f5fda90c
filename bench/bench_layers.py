"""Layers beside their rivals: ``pytest bench/bench_layers.py``. All are verified first.

`gossamer bench` measures the same cases interleaved, which is what its ratios are taken from;
this suite is for watching one candidate over time with pytest-benchmark's own tools.
"""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from gossamer import timing
from gossamer.bench import cases
from gossamer.bench.bars import BOTH, FORWARD
from gossamer.bench.cases import GOSSAMER, NN_LINEAR, Case, Shape
from gossamer.bench.compare import runners
from gossamer.bench.rivals import UnavailableError, candidate, verify

ENTRANTS = [
    (pattern, name)
    for pattern in cases.PATTERNS
    for name in (NN_LINEAR, GOSSAMER, *cases.rivals_of(pattern))
    # The dense layer costs the same whatever the pattern.
    if name != NN_LINEAR or pattern == cases.PATTERNS[0]
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("topic", [FORWARD, BOTH])
@pytest.mark.parametrize(("pattern", "name"), ENTRANTS)
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
