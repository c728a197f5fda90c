"""The bench of sparse codes: everything planned is measured, and a wrong entrant is found out."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.codes import TOPIC, kernels
from bench.harness.contest import WrongResultError
from bench.harness.record import GOSSAMER
from bench.harness.results import Results


def test_every_task_is_measured_and_shown(tmp_path: Path) -> None:
    plan = replace(TOPIC.quick, seconds=0.0, rounds=(1, 1))
    records = kernels.measure_all(plan)
    assert [r.topic for r in records] == list(kernels.TASKS) == list(kernels.tasks(plan.scope))
    assert [r.key for r in records] == [key for job in kernels.jobs(plan) for key in job.keys]
    machine = {"cpu": "c", "cores": 2, "caches": {}, "isa": "i", "system": "s", "versions": {}}
    found = Results(tmp_path / "r.json", machine, {"quick": True}, [], records)
    assert "| top-k | 1 | torch.topk |" in TOPIC.page(found).markdown()


def test_a_wrong_entrant_is_found_out() -> None:
    calls = kernels.tasks(kernels.Sizes(4, 8, 64, 3))["decode"]
    kernels.verify("decode", calls)
    wrong = calls | {"off": lambda: 1.001 * calls[GOSSAMER]()}
    with pytest.raises(WrongResultError, match="off"):
        kernels.verify("decode", wrong)
