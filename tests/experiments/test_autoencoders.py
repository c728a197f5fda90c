"""The comparison of sparse autoencoders on activations runs, and its page shows what it found."""

import json
import math
from pathlib import Path

import pytest

from experiments.autoencoders import study


@pytest.mark.slow
def test_the_comparison_runs(tmp_path: Path) -> None:
    points = study.run(tmp_path, study.QUICK)
    kinds = {point.method for point in points}
    assert {
        study.TOPK,
        study.HIERARCHICAL,
        study.L1,
    } < kinds
    assert all(math.isfinite(point.explained) and 0 <= point.dead <= 1 for point in points)
    found = json.loads((tmp_path / "sparse-autoencoders.json").read_text())
    assert len(found["points"]) == len(points)
    assert {row["topic"] for row in found["kernels"]} >= {"top-k", "decode"}
    page = (tmp_path / "sparse-autoencoders.md").read_text()
    assert "| HierarchicalTopK | k=4 |" in page
    assert (tmp_path / "sparse-autoencoders.png").stat().st_size > 1000
