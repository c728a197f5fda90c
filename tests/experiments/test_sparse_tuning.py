"""The experiment on sparse tuning: what is trained, kept and shown."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from experiments.sparse_tuning.study import NAME, study
from experiments.sparse_tuning.training import LORA, RATES, SPP, Plan, Tuning, measure
from support.training import TEXT

pytestmark = [pytest.mark.slow, pytest.mark.process]
TINY = Plan(steps=2, tuning=2, batch=2, context=16, width=32, depth=1, lora_rank=2, data=TEXT)


def test_a_file_is_made_and_its_page(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    chosen = {"patterns": ["2:4"], "scores": ["wanda"], "seeds": 1}
    assert study(tmp_path, TINY, console=console, **chosen) == 0  # type: ignore[arg-type]
    rows = [json.loads(line) for line in (tmp_path / f"{NAME}.jsonl").read_text().splitlines()]
    assert len(rows) == 1 + sum(map(len, RATES.values()))
    assert "| 2:4 | wanda | SPP |" in (tmp_path / f"{NAME}.md").read_text()


def test_a_training_is_one_function_of_its_plan() -> None:
    for method in (SPP, LORA):
        one = Tuning("75%", "magnitude", method, 1e-2, 0)
        assert measure(TINY, one) == measure(TINY, one)
