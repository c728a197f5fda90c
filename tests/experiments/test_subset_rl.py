"""The experiment on subsets in reinforcement learning: what is trained and shown."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from experiments.subset_rl.study import NAME, study
from experiments.subset_rl.training import FULL, MASKS, Plan

pytestmark = [pytest.mark.slow, pytest.mark.process]
TINY = Plan(digits=3, width=16, depth=1, supervised=2, steps=4, prompts=4, samples=8, tested=8)


def test_a_file_is_made_and_its_page(tmp_path: Path) -> None:
    assert study(tmp_path, TINY, console=Console(file=io.StringIO(), width=200)) == 0
    rows = [json.loads(line) for line in (tmp_path / f"{NAME}.jsonl").read_text().splitlines()][1:]
    assert len(rows) == TINY.seeds * (1 + len(MASKS))
    found = {row["masks"]: row for row in rows if row["seed"] == 0}
    for name in MASKS:
        assert 0.0 < found[name]["changed any"] <= 0.2 + 1e-3
    assert found[FULL]["changed any"] > 0.2
    assert found["difference"]["overlap"] == 1.0
    assert "| Fisher |" in (tmp_path / f"{NAME}.md").read_text()
