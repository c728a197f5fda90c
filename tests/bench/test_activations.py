"""The bench of sparse activations: everything planned is measured, a wrong network is found out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.activations import TOPIC, cases
from bench.harness.contest import WrongResultError
from bench.harness.results import Results
from gossamer import timing
from gossamer.backend import activations as kernels


def test_everything_is_measured_and_shown(tmp_path: Path) -> None:
    plan = replace(TOPIC.quick, seconds=0.0, rounds=(1, 1))
    jobs = [job for build in TOPIC.builders for job in build(plan)]
    records = []
    for job in jobs:
        with timing.threads(job.threads):
            records += job.run([])
    assert [r.key for r in records] == [key for job in jobs for key in job.keys]
    assert {job.group for job in jobs} == set(TOPIC.groups)
    machine = {"cpu": "c", "cores": 2, "caches": {}, "isa": "i", "system": "s", "versions": {}}
    found = Results(tmp_path / "r.json", machine, {"quick": True}, [], records)
    text = TOPIC.page(found).markdown()
    assert "| forward + backward | 64×32×64 | 5% uniform | bfloat16 | 1 |" in text
    assert "2:4:v4 attention" in text


@pytest.mark.parametrize("zipf", [False, True])
def test_the_problem_has_the_wanted_share(zipf: bool) -> None:
    x, weights = cases.problem(cases.Size(300, 64, 200), cases.Live(0.05, zipf))
    live = float(((x @ weights.gate.t()) > 0).float().mean())
    assert live == pytest.approx(0.05, abs=0.004)


def test_a_wrong_network_is_found_out() -> None:
    y = torch.randn(5, 4)
    cases.verify("same", y, y.double(), 1e-6)
    with pytest.raises(WrongResultError, match="off differs"):
        cases.verify("off", 1.001 * y, y, 1e-5)


def test_the_fast_product_is_known() -> None:
    assert kernels.has_fast_int8() == (kernels.screen_table() == "avx512vnni")
