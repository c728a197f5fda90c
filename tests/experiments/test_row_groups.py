"""The experiment on grouped rows: what is pruned, kept and shown."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.row_groups.study import NAME, study
from experiments.row_groups.times import times
from experiments.row_groups.training import Plan, Pruning, measure
from gossamer.errors import ArgumentError
from support.training import TEXT

pytestmark = [pytest.mark.slow, pytest.mark.process]

TINY = Plan(steps=3, tuning=2, batch=2, context=16, width=32, depth=1, data=TEXT)


def call(out: Path, **options: Any) -> list[dict[str, Any]]:
    console = Console(file=io.StringIO(), width=200)
    chosen = {"patterns": ["2:4"], "vectors": [1, 8], "seeds": 1} | options
    assert study(out, TINY, console=console, **chosen) == 0
    return [json.loads(line) for line in (out / f"{NAME}.jsonl").read_text().splitlines()][1:]


def test_a_file_is_continued_and_a_part_of_it_is_a_page(tmp_path: Path) -> None:
    rows = call(tmp_path)
    assert [(row["vector"], row["grouped"]) for row in rows] == [(1, False), (8, False), (8, True)]
    plain, grouped = rows[1:]
    assert grouped["kept"] > plain["kept"] + 0.005
    assert rows[0]["kept"] > grouped["kept"]
    assert len(call(tmp_path, patterns=["2:4", "1:4"])) == 6
    table = (tmp_path / f"{NAME}.md").read_text()
    assert "| 2:4, grouped |" in table
    assert "1:4, V = 8: kept" in table
    assert (tmp_path / f"{NAME}.png").stat().st_size > 5_000


def test_a_pruning_is_one_function_of_its_plan() -> None:
    one = Pruning("1:4", 16, True, 3)
    first, second = ({**measure(TINY, one), "seconds": 0} for _ in range(2))
    assert first == second
    assert 0.25 < first["kept"] < 0.6


def test_the_times_are_a_table(tmp_path: Path) -> None:
    table = times(tmp_path, [(8, 32, 64)], [8], rounds=1).read_text()
    assert "| 8×32×64 | 2:4:v8 |" in table


def test_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="seeds=0"):
        study(tmp_path, TINY, seeds=0)
