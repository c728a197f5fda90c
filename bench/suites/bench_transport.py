"""Transport beside its rivals: ``pytest bench/suites/bench_transport.py``. All are judged first.

`python -m bench transport` measures the same cells interleaved, each solver in a process of
its own, which is what its ratios are taken from; this suite is for watching one solver over time
with pytest-benchmark's own tools.
"""

import os
from importlib.util import find_spec

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.harness.record import GOSSAMER
from bench.transport import cases, solvers
from bench.transport.cases import FULL, ROUNDING, TOLERANCE, Case
from bench.transport.marginals import marginal_error
from bench.transport.solvers import POT, REGOT, SOLVERS
from gossamer import timing

# The others take seconds a call: the interleaved bench ends them after a while.
SLOW = {(POT, 1e-3), (POT, 2e-4)}


@pytest.mark.parametrize("name", [GOSSAMER, POT, REGOT])
@pytest.mark.parametrize(
    "case", [c for c in FULL.scope.cases if c.n == 500], ids=lambda c: c.pattern
)
def test_transport(
    benchmark: BenchmarkFixture, monkeypatch: pytest.MonkeyPatch, case: Case, name: str
) -> None:
    solver = SOLVERS[name]
    if (name, case.reg) in SLOW:
        pytest.skip("takes seconds")
    if solver.package and not find_spec(solver.package):
        pytest.skip(f"not installed: {solver.distribution}")
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    problem = cases.build(case, seed=0)
    with timing.threads(1):
        solve = getattr(solvers, solver.function)(*problem, TOLERANCE)
        error = marginal_error(solve(), problem.a, problem.b)
        if not error <= TOLERANCE + ROUNDING:
            pytest.skip(f"does not solve it: L1 error {error:.1e}")
        benchmark.group = f"{case.pattern}, n = {case.n}, one thread"
        benchmark(solve)
