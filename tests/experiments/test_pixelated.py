"""The experiment on pixelated butterflies: what is trained, timed and shown."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from experiments.pixelated.study import NAME, study
from experiments.pixelated.times import times
from experiments.pixelated.training import METHODS, Plan
from gossamer.errors import ArgumentError
from support.training import TEXT

pytestmark = pytest.mark.slow

TINY = Plan(steps=2, batch=2, context=16, width=128, depth=1, data=TEXT)


def test_a_file_is_continued_and_shown(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    for _ in range(2):
        assert study(tmp_path, TINY, seeds=1, console=console) == 0
    lines = (tmp_path / f"{NAME}.jsonl").read_text().splitlines()[1:]
    rows = [json.loads(line) for line in lines]
    assert [row["method"] for row in rows] == list(METHODS)
    assert rows[0]["density"] == 1.0
    assert all(0.2 < row["density"] <= 0.25 for row in rows[1:])
    assert "| dense | 100.0% |" in (tmp_path / f"{NAME}.md").read_text()
    with pytest.raises(ArgumentError, match="seeds"):
        study(tmp_path, TINY, seeds=0, console=console)


def test_the_times_are_a_table(tmp_path: Path) -> None:
    table = times(tmp_path, 384, 1, 1, 16, rounds=1).read_text()
    assert "| butterfly 3/16 and low rank |" in table
