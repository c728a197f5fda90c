"""The bench of whole models measures a sparse GPT-2 beside the dense one."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gossamer
from bench.harness.bars import verdicts
from bench.harness.contest import WrongResultError
from bench.harness.record import GOSSAMER, Quartiles
from bench.harness.results import Results
from bench.models import gpt2
from bench.models.gpt2 import BARS, BFLOAT16, DENSE, FLOAT32, PATTERNS, QUICK, Stepper
from bench.models.tables import page

pytest.importorskip("transformers")
MACHINE = {
    "cpu": "c", "cores": 2, "caches": {}, "isa": "i", "isas": ["i"], "system": "s",
    "torch_capability": "t", "versions": {"torch": "t", "transformers": "5"},
}  # fmt: skip


def test_a_whole_measurement(tmp_path: Path) -> None:
    jobs = [job for job in gpt2.jobs(QUICK) if job.keys[0][3] == FLOAT32]
    records = [record for job in jobs for record in job.run([])]
    assert [(r.pattern, r.threads) for r in records] == [(p, 1) for p in PATTERNS]
    assert [round(r.density, 2) for r in records] == [0.5, 0.25, 0.1]
    assert not verdicts(records, BARS)
    results = Results(tmp_path / "r.json", MACHINE, {"quick": True}, [], records)
    text = page(results).markdown()
    assert all(f"| {pattern} | GPT-2 64×1, 2×16 | float32 | 1 |" in text for pattern in PATTERNS)
    assert "bfloat16 was not measured" in text
    # What is possible is measured with the first pattern and stands beside each.
    assert [gpt2.FREE in r.measured for r in records] == [True, False, False]
    lines = [line for line in text.splitlines() if line.startswith("| ") and "2×16" in line]
    assert len({line.split("|")[-3] for line in lines}) == 1
    assert "–" not in lines[1].split("|")[-3]
    slow = {GOSSAMER: Quartiles.exactly(1.0), DENSE: Quartiles.exactly(1.2)}
    half = replace(records[0], dtype=BFLOAT16, measured=slow, ratios={DENSE: slow[DENSE]})
    results = replace(results, records=[half])
    assert "1.2× ✗ | – | ≥ 1.25× |" in page(results).markdown()


def test_bfloat16_is_measured_where_it_is_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    for isas, dtypes in (
        (["avx512", "avx2"], {FLOAT32}),
        (["avx512bf16", "avx512"], {FLOAT32, BFLOAT16}),
    ):
        monkeypatch.setattr("bench.harness.machine.isas", lambda isas=isas: isas)
        keys = [job.keys[0] for job in gpt2.jobs(gpt2.FULL)]
        assert {key[3] for key in keys} == dtypes
        assert {key[4] for key in keys} == {1, 2}
        assert keys[0][1] == "GPT-2 768x12, 2x256"


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_both_train_and_a_wrong_model_is_not_timed(dtype: str) -> None:
    scope = QUICK.scope
    sparse = Stepper(gpt2.sparse_gpt2(scope, "2:4:v4"), scope, dtype)
    gpt2.verify(sparse, scope, dtype, "2:4:v4")
    dense = Stepper(gpt2.gpt2(scope), scope, dtype)
    for one in (sparse, dense):
        before = one.output().loss.item()
        for _ in range(3):
            one.step()
        assert one.output().loss.item() < before
    other = Stepper(gpt2.gpt2(scope), scope, dtype)
    with pytest.raises(WrongResultError, match="not every linear"):
        gpt2.verify(other, scope, dtype, "2:4:v4")
    densify = gossamer.densify

    def wrong(model: torch.nn.Module) -> torch.nn.Module:
        full = densify(copy.deepcopy(model))
        with torch.no_grad():
            full.transformer.ln_f.weight.mul_(3)  # type: ignore[union-attr, operator]
        return full

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gossamer, "densify", wrong)
        with pytest.raises(WrongResultError, match="is wrong at"):
            gpt2.verify(sparse, scope, dtype, "2:4:v4")


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_layers_that_cost_nothing_stand_where_the_sparse_ones_do(dtype: str) -> None:
    scope = QUICK.scope
    free = Stepper(gpt2.free_gpt2(scope), scope, dtype)
    names = {n for n, m in free.model.named_modules() if isinstance(m, gpt2.Free)}
    sparse = gpt2.sparse_gpt2(scope, "2:4:v4")
    assert names == {n for n, m in sparse.named_modules() if isinstance(m, gossamer.SparseLinear)}
    before = [p.detach().clone() for p in free.model.parameters()]
    free.step()
    assert free.output().logits.shape == Stepper(sparse, scope, dtype).output().logits.shape
    changed = [bool((p != b).any()) for p, b in zip(free.model.parameters(), before, strict=True)]
    assert all(changed)  # every part that is left still trains
