"""The experiments on scores: what is cut, trained and shown."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments.one_shot_scores import digits, tickets
from experiments.one_shot_scores.cuts import PLAN, SCORES, Cut, measure
from experiments.one_shot_scores.study import NAME, study
from gossamer.errors import ArgumentError
from support.training import TEXT

pytestmark = pytest.mark.slow

TINY = replace(PLAN, steps=3, batch=2, context=16, width=32, depth=1, data=TEXT)
SHORT = digits.Plan(epochs=1, batch=250, rounds=3)


def test_a_file_is_continued_and_shown(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    for patterns in (["2:4"], ["2:4", "50%"]):
        assert study(tmp_path, TINY, patterns=patterns, seeds=1, console=console) == 0
    lines = (tmp_path / f"{NAME}.jsonl").read_text().splitlines()[1:]
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 2 * len(SCORES)
    assert len({row["loss"] for row in rows}) > len(SCORES)
    assert len({row["dense_loss"] for row in rows}) == 1
    text = (tmp_path / f"{NAME}.md").read_text()
    assert "| Wanda, by row |" in text
    assert "2:4: best is" in text
    one = Cut("drawn by Wanda", "50%", 0)
    assert measure(TINY, one) == measure(TINY, one)
    with pytest.raises(ArgumentError, match="seeds"):
        study(tmp_path, TINY, seeds=0, console=console)


def test_scores_before_training_are_a_table(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    for seeds in (1, 2):
        assert digits.study(tmp_path, SHORT, sparsities=[90], seeds=seeds, console=console) == 0
    lines = (tmp_path / f"{digits.NAME}.jsonl").read_text().splitlines()[1:]
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 2 * len(digits.SCORES)
    assert len({row["least"] for row in rows}) > 3
    assert "| SynFlow, drawn |" in (tmp_path / f"{digits.NAME}.md").read_text()


def test_tickets_are_found_inside_sources(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    plan = tickets.Plan(epochs=1, batch=250, width=32)
    for sparsities in ([90], [40, 90]):
        assert tickets.study(tmp_path, plan, sparsities=sparsities, seeds=1, console=console) == 0
    lines = (tmp_path / f"{tickets.NAME}.jsonl").read_text().splitlines()[1:]
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 6 + 4  # a source of half the entries holds no mask of 60 %
    text = (tmp_path / f"{tickets.NAME}.md").read_text()
    assert "| EdgePopup | 50 % | – |" in text
