"""The bench of convolutions: layers and a ResNet's step, verified before they are timed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.convolutions import layers, resnet
from bench.convolutions.cases import BARS, BOTH, DENSE, FULL, MEMORY, QUICK, SHAPES, STEP, Shape
from bench.convolutions.tables import page
from bench.harness.bars import verdicts
from bench.harness.contest import WrongResultError
from bench.harness.record import GOSSAMER
from bench.harness.results import Results
from gossamer.nn import SparseConv2d

MACHINE = {
    "cpu": "c", "cores": 2, "caches": {}, "isa": "i", "isas": ["i"], "system": "s",
    "torch_capability": "t", "versions": {"torch": "t"},
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


def test_layers_and_their_table(tmp_path: Path) -> None:
    records = [record for job in layers.jobs(QUICK) for record in job.run([])]
    assert {r.topic for r in records} == {BOTH}
    assert [(r.dtype, r.pattern) for r in records] == [
        ("float32", "2:4:v4"),
        ("float32", "90%"),
        ("bfloat16", "2:4:v4"),
    ]
    assert all({GOSSAMER, DENSE} <= set(r.measured) for r in records)
    barred = [replace(r, shape=str(SHAPES[0])) for r in records]
    assert verdicts(barred, BARS)[0].bar.bound == 1.5
    assert {verdict.record.dtype for verdict in verdicts(barred, BARS)} == {"float32"}
    results = Results(tmp_path / "r.json", MACHINE, {"quick": True}, [], records)
    assert page(results).markdown().count("| 2:4:v4 | 2×16×8, 3×3 | 1 |") == 2


def test_a_wrong_layer_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = SparseConv2d.forward
    monkeypatch.setattr(SparseConv2d, "forward", lambda self, x: 1.01 * forward(self, x))
    (job, *_) = layers.jobs(QUICK)
    with pytest.raises(WrongResultError, match="output"):
        job.run([])


def test_every_shape_is_planned() -> None:
    keys = [job.keys[0] for job in layers.jobs(FULL)]
    assert {key[1] for key in keys} == set(map(str, SHAPES))
    assert Shape(2, 4, 8, stride=2).flops == 2 * 2 * 16 * 9 * 16


@pytest.mark.slow
@pytest.mark.process
def test_the_resnet() -> None:
    job = next(resnet.jobs(QUICK))
    step, memory = job.run([])
    assert (step.topic, memory.topic) == (STEP, MEMORY)
    assert step.density == pytest.approx(0.5)
    assert min(memory.measured[name].median for name in (GOSSAMER, DENSE)) > 0
    model = resnet.sparse_resnet18(8, "2:4:v4")
    dense = [type(m) for m in model.modules() if isinstance(m, nn.Conv2d)]
    sparse = [m for m in model.modules() if isinstance(m, SparseConv2d)]
    assert (len(dense), len(sparse)) == (1, 19)
    stepper = resnet.Stepper.of(model, 4)
    before = sparse[0].weight.values.detach().clone()
    stepper.step()
    assert not torch.equal(before, sparse[0].weight.values)
