"""Constraints on what pruning costs each class: what is trained and shown."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments.balancing_act.study import NAME, largest_gap, study, time_step
from experiments.balancing_act.training import CONSTRAINED, PLAIN, Plan, Training, measure
from gossamer.errors import ArgumentError

pytestmark = pytest.mark.slow

TINY = Plan(dense_epochs=2, epochs=4, batch=100)


def test_a_file_is_continued_and_shown(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    for seeds in (1, 2):
        assert study(tmp_path, TINY, seeds=seeds, console=console) == 0
    rows = [json.loads(line) for line in (tmp_path / f"{NAME}.jsonl").read_text().splitlines()][1:]
    assert len(rows) == 4
    text = (tmp_path / f"{NAME}.md").read_text()
    assert "| with constraints |" in text
    with pytest.raises(ArgumentError, match="seeds"):
        study(tmp_path, TINY, seeds=0, console=console)


def test_constraints_act_and_a_training_repeats() -> None:
    plan = replace(TINY, epochs=12, rate=0.01)
    rows = [measure(plan, Training(who, 0)) for who in (PLAIN, CONSTRAINED, CONSTRAINED)]
    assert rows[1] == rows[2]
    assert rows[0]["train"]["dense"] == rows[1]["train"]["dense"]
    assert rows[0]["train"]["sparse"] != rows[1]["train"]["sparse"]
    assert max(rows[1]["multipliers"]) > 0


def test_the_gap_is_that_of_the_definition() -> None:
    counts = [10, 30]
    dense, sparse = ({"classes": c, "counts": counts} for c in ([1.0, 0.9], [0.6, 0.9]))
    assert largest_gap({"dense": dense, "sparse": sparse}) == pytest.approx(0.4 - 0.1)


def test_both_steps_are_timed() -> None:
    row = time_step(Training("time", -1), width=32, rounds=2)
    assert row["plain"] > 0
    assert row["constrained"] > 0
