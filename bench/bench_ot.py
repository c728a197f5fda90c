"""Transport beside its rivals: ``pytest bench/bench_ot.py``. Every answer is judged first.

`gossamer bench --only transport` measures the same cells interleaved, each solver in a process of
its own, which is what its ratios are taken from; this suite is for watching one solver over time
with pytest-benchmark's own tools.
"""

import os
from importlib.util import find_spec

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from gossamer import timing
from gossamer.bench import ot_cases, ot_rivals
from gossamer.bench.ot_cases import FULL, ROUNDING, TOLERANCE, Cell
from gossamer.bench.ot_rivals import ENTRANTS, GOSSAMER, POT, REGOT
from gossamer.bench.ot_worker import marginal_error

# The others take seconds a call: the interleaved bench ends them after a while.
SLOW = {(POT, 1e-3), (POT, 2e-4)}


@pytest.mark.parametrize("name", [GOSSAMER, POT, REGOT])
@pytest.mark.parametrize("cell", [c for c in FULL.cells if c.n == 500], ids=lambda c: c.pattern)
def test_transport(
    benchmark: BenchmarkFixture, monkeypatch: pytest.MonkeyPatch, cell: Cell, name: str
) -> None:
    entrant = ENTRANTS[name]
    if (name, cell.reg) in SLOW:
        pytest.skip("takes seconds")
    if entrant.package and not find_spec(entrant.package):
        pytest.skip(f"not installed: {entrant.distribution}")
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    problem = ot_cases.build(cell, seed=0)
    with timing.threads(1):
        solve = getattr(ot_rivals, entrant.function)(*problem, TOLERANCE)
        error = marginal_error(solve(), problem.a, problem.b)
        if not error <= TOLERANCE + ROUNDING:
            pytest.skip(f"does not solve it: L1 error {error:.1e}")
        benchmark.group = f"{cell.pattern}, n = {cell.n}, one thread"
        benchmark(solve)
