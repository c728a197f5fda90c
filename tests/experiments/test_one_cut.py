"""Models that are cut once: what is trained and shown."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.one_cut.study import NAME, TIMED, study, time_steps, verdict
from experiments.one_cut.training import ADAMW, CUTS, PATTERNS, PLAN, Training, measure
from gossamer.errors import ArgumentError
from support.training import TEXT

pytestmark = pytest.mark.slow

TINY = replace(PLAN, steps=4, width=40, depth=1, heads=2, context=16, batch=2, data=TEXT)


def test_a_file_is_continued_and_shown(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    for seeds in (1, 2):
        assert study(tmp_path, TINY, seeds=seeds, console=console) == 0
    rows = [json.loads(line) for line in (tmp_path / f"{NAME}.jsonl").read_text().splitlines()][1:]
    assert len(rows) == 2 * len(PATTERNS)
    assert all(list(row["cut"]) == list(CUTS) for row in rows)
    text = (tmp_path / f"{NAME}.md").read_text()
    assert "| AdamW |" in text
    assert "| CrAM+ n:m, v4 |" in text
    with pytest.raises(ArgumentError, match="seeds"):
        study(tmp_path, TINY, seeds=0, console=console)


def test_methods_differ_and_repeat() -> None:
    rows = [measure(TINY, Training(who, 0)) for who in (ADAMW, "CrAM+ %", ADAMW)]
    assert rows[0] == rows[2]
    assert rows[0]["dense"] != rows[1]["dense"]


@pytest.mark.parametrize(("plain", "word"), [(0.1, "met"), (0.04, "missed")])
def test_the_bar_is_judged(plain: float, word: str) -> None:
    def row(method: str, cost: float) -> dict[str, Any]:
        return {"method": method, "seed": 0, "dense": 2.0, "cut": dict.fromkeys(CUTS, 2.0 + cost)}

    said = verdict([row(ADAMW, plain), row("CrAM+ %", 0.01)])
    assert len(said) == 1
    assert said[0].endswith(word)


def test_steps_are_timed() -> None:
    row = time_steps(Training("time", -1), width=32, rounds=2)
    assert set(row["step"]) == {"", *TIMED}
    assert all(seconds > 0 for seconds in row["step"].values())
