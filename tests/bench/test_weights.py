"""The bench of modules with weights of their own: verified before they are timed."""

from pathlib import Path

import pytest
import torch

from bench.harness.bars import verdicts
from bench.harness.contest import WrongResultError
from bench.harness.record import GOSSAMER
from bench.harness.results import Results
from bench.weights.jobs import BARS, DENSE, FULL, QUICK, jobs, modules
from bench.weights.tables import page
from gossamer.nn.layers import parameter

MACHINE = {
    "cpu": "c", "cores": 2, "caches": {}, "isa": "i", "isas": ["i"], "system": "s",
    "torch_capability": "t", "versions": {"torch": "t"},
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


def test_modules_and_their_table(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    records = [record for job in jobs(QUICK) for record in job.run([])]
    assert [r.shape for r in records] == [*modules(QUICK.scope)]
    assert all(set(r.measured) == {GOSSAMER, DENSE} for r in records)
    assert all(r.density == pytest.approx(0.5) for r in records)
    assert verdicts(records, BARS)[0].bar.bound == 1.2
    results = Results(tmp_path / "r.json", MACHINE, {"quick": True}, [], records)
    assert "| 2:4:v4 | LSTM 32 | 1 |" in page(results).markdown()


def test_a_wrong_product_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = parameter.spmm
    monkeypatch.setattr(parameter, "spmm", lambda *args: 1.01 * right(*args))
    (job, *_) = jobs(QUICK)
    with pytest.raises(WrongResultError, match="output"):
        job.run([])


def test_every_module_is_planned() -> None:
    keys = [job.keys[0] for job in jobs(FULL)]
    assert {key[1] for key in keys} == set(modules(FULL.scope))
    assert torch.Size((32, 32, 512)) == torch.Size(modules(FULL.scope)["LSTM 512"][2])
