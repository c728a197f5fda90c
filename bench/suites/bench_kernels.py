"""The three verbs alone: ``pytest bench/suites/bench_kernels.py``. They are verified first."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.harness.record import GOSSAMER
from bench.layers import cases
from bench.layers.bars import SDDMM, SPMM, SPMM_T
from bench.layers.cases import Case, Shape
from bench.layers.jobs import TORCH, verb_runners
from gossamer import timing


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("pattern", cases.PATTERNS)
@pytest.mark.parametrize("verb", [SPMM, SPMM_T, SDDMM])
@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
def test_verb(
    benchmark: BenchmarkFixture, shape: Shape, verb: str, pattern: str, threads: int
) -> None:
    case = Case(shape, pattern)
    with timing.threads(threads):
        run = verb_runners(case)[verb][GOSSAMER]
        benchmark.group = f"{verb} {shape}, threads: {threads}"
        benchmark.extra_info["useful_flops"] = case.useful_flops
        benchmark(run)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("verb", [SPMM, SPMM_T, SDDMM])
@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
def test_dense_verb(benchmark: BenchmarkFixture, shape: Shape, verb: str, threads: int) -> None:
    with timing.threads(threads), torch.no_grad():
        run = verb_runners(Case(shape, cases.PATTERNS[0]))[verb][TORCH]
        benchmark.group = f"{verb} {shape}, threads: {threads}"
        benchmark.extra_info["useful_flops"] = shape.flops
        benchmark(run)
