"""The masked-dense twin that SR-STE is measured against does SR-STE's work."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.harness.bars import verdicts
from bench.harness.contest import WrongResultError
from bench.harness.record import GOSSAMER
from bench.harness.results import Results
from bench.recipes import steps
from bench.recipes.steps import QUICK, RECIPES, SRSTE_STEP, STATE, STEP, TWIN, check_twin, largest
from bench.recipes.tables import page
from gossamer.masks import magnitude_mask
from gossamer.patterns import NM
from gossamer.recipes import SRSTE


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(steps.DEMO, width=32, depth=1, heads=2, batch=2, context=8)
    monkeypatch.setattr(steps, "DEMO", small)


@pytest.mark.parametrize("pattern", [NM(2, 4, 4), NM(1, 4), NM(2, 8, 8), NM(3, 5)])
def test_the_twins_mask_is_the_magnitude_mask(pattern: NM) -> None:
    weight = torch.randint(-3, 4, (16, 40), dtype=torch.float32)  # full of ties
    assert torch.equal(largest(weight, pattern), magnitude_mask(weight, pattern))


def test_the_twin_trains_as_srste_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "DECAY", 20.0)  # strong enough to be seen in three steps
    them = steps.steppers()
    ours, twin = them[SRSTE_STEP], them[TWIN]
    torch.nn.init.normal_(twin.masked[0].weight)
    with pytest.raises(WrongResultError, match="twin"):
        check_twin(ours, twin)
    them = steps.steppers()
    ours, twin = them[SRSTE_STEP], them[TWIN]
    check_twin(ours, twin, steps=3)
    for mine, theirs in zip(ours.model.parameters(), twin.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    layers = list(ours.model.modules())
    masks = [layer.mask() for layer in layers if hasattr(layer, "mask")]
    assert len(masks) == len(twin.masked)
    assert all(map(torch.equal, masks, [layer.mask for layer in twin.masked]))


def test_a_whole_measurement(tmp_path: Path) -> None:
    (job,) = steps.jobs(QUICK)
    records = job.run([])
    assert [record.key for record in records] == job.keys
    assert {r.pattern for r in records if r.topic == STEP} == set(RECIPES)
    held = {r.pattern: r.measured[GOSSAMER].median for r in records if r.topic == STATE}
    assert held["SLoPe 1:8:v4"] < held["SLoPe 2:4:v4"]
    machine = {
        "cpu": "c", "cores": 2, "caches": {}, "isa": "i", "isas": [], "system": "s",
        "versions": {"torch": "t"},
    }  # fmt: skip
    text = page(Results(tmp_path / "r.json", machine, {"quick": True}, [], records)).markdown()
    assert all(name in text for name in RECIPES)
    assert len(verdicts(records, steps.BARS)) == 3


def test_the_twin_decays_what_it_masks() -> None:
    layer = steps.MaskedDense(nn.Linear(8, 4, bias=False), NM(2, 4, 4))
    layer(torch.randn(2, 8)).sum().backward()
    before, weight = layer.weight.grad.clone(), layer.weight.detach()
    layer.decay(0.25)
    torch.testing.assert_close(
        layer.weight.grad, torch.where(layer.mask, before, before + 0.25 * weight)
    )
    assert before[~layer.mask].any()
    assert SRSTE("2:4").gradient_decay == 2e-4 == steps.DECAY
