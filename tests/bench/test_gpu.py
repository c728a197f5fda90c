"""The script for a GPU: every stage runs on the CPU at sizes of a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.gpu import stages
from bench.gpu.__main__ import main


def test_all_stages_run_and_leave_their_records(tmp_path: Path) -> None:
    others = [name for name in stages.STAGES if name != "kernels"]  # tests/gpu runs these
    assert main(["--device", "cpu", "--tiny", "--out", str(tmp_path), "--only", *others]) == 0
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert list(results) == others
    assert all(found["failed"] is None and found["records"] for found in results.values())
    assert results["correct"]["records"][0]["wrong"] == []
    assert {r["pattern"] for r in results["products"]["records"]} == set(stages.PATTERNS)
    assert results["losses"]["records"][0]["largest difference"] == 0.0


def test_a_stage_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(setup: stages.Setup) -> list[stages.Record]:
        raise ValueError("a fault in the stage")

    monkeypatch.setitem(stages.STAGES, "ceilings", (5, breaks))
    arguments = ["--device", "cpu", "--tiny", "--out", str(tmp_path)]
    assert main([*arguments, "--only", "machine", "ceilings", "masks"]) == 1
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert "a fault in the stage" in results["ceilings"]["failed"]
    assert len(results["masks"]["records"]) == 2
    assert main([*arguments, "--seconds", "0", "--only", "machine"]) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "finds no GPU" in capsys.readouterr().out


def test_a_wrong_product_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages.gossamer, "spmm_t", lambda g, w: (g @ w.to_dense()) * 1.02)
    assert main(["--device", "cpu", "--tiny", "--out", str(tmp_path), "--only", "correct"]) == 1
    wrong = json.loads((tmp_path / "gpu.json").read_text())["correct"]["records"][0]["wrong"]
    assert {r["verb"] for r in wrong} == {"spmm_t"}
