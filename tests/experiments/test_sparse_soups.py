"""Soups of sparse models on the digits: what is run and shown."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments.sparse_soups.study import NAME, study
from experiments.sparse_soups.training import METHODS, SOUP, SWAMP, Plan, Training, measure
from gossamer.errors import ArgumentError

pytestmark = pytest.mark.slow

TINY = Plan(pattern="75%", rounds=2, epochs=1, early=1, batch=200, width=32)


def test_a_file_is_continued_and_shown(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    for seeds in (1, 2):
        assert study(tmp_path, TINY, seeds=seeds, console=console) == 0
    rows = [json.loads(line) for line in (tmp_path / f"{NAME}.jsonl").read_text().splitlines()][1:]
    assert len(rows) == 2 * 2 * len(METHODS)
    assert all(len(row["result"]) == TINY.rounds for row in rows)
    text = (tmp_path / f"{NAME}.md").read_text()
    assert "| dropped | 50.0% | 75.0% |" in text
    assert "| its best copy |" in text
    with pytest.raises(ArgumentError, match="seeds"):
        study(tmp_path, TINY, seeds=0, console=console)


def test_a_run_repeats_and_its_copies_differ() -> None:
    plan = replace(TINY, epochs=4)
    row = measure(plan, Training(SOUP, 20, 0))
    assert row == measure(plan, Training(SOUP, 20, 0))
    assert row["result"][-1][0] > 0.3
    assert [len(copies) for copies in row["copies"]] == [3, 3]
    assert len({tuple(one) for one in row["copies"][0]}) == 3
    assert len(measure(plan, Training(SWAMP, 0, 0))["copies"][0]) == 4
