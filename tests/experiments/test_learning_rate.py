"""The experiment on the learning rate's exponent: what is trained, kept and shown."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.learning_rate import training
from experiments.learning_rate.page import sentences
from experiments.learning_rate.study import NAME, study, trainings
from experiments.learning_rate.training import PLAN, Training, measure
from gossamer.errors import ArgumentError
from gossamer.train import Run
from support.training import TEXT

pytestmark = [pytest.mark.slow, pytest.mark.process]

TINY = replace(PLAN, steps=3, width=40, depth=1, heads=2, context=16, batch=2, data=TEXT)


def call(out: Path, **options: Any) -> list[dict[str, Any]]:
    console = Console(file=io.StringIO(), width=200)
    chosen = {"sparsities": [90], "lrs": [1e-3], "exponents": [0.0, 1.0], "seeds": 1} | options
    assert study(out, TINY, console=console, **chosen) == 0
    return [json.loads(line) for line in (out / f"{NAME}.jsonl").read_text().splitlines()][1:]


def test_a_file_is_continued_and_a_part_of_it_is_a_page(tmp_path: Path) -> None:
    rows = call(tmp_path)
    kinds = [(row["sparsity"], row["exponent"], row["init"]) for row in rows]
    assert kinds == [(0, 0, 1), (90, 0, 1), (90, 1, 1), (90, 1, 0), (90, 1, 0.5)]
    assert rows[1]["val_loss"] != rows[2]["val_loss"]
    more = call(tmp_path, lrs=[1e-3, 2e-3])
    assert more[:5] == rows
    assert len(more) == 10
    table = (tmp_path / f"{NAME}.md").read_text()
    assert "| 10 % |" in table
    assert "e = 1, rate 0.002" in table
    assert "At 10 %, e = 1: the variance" in table
    assert (tmp_path / f"{NAME}.png").stat().st_size > 5_000


def test_the_exponents_reach_the_optimizer_and_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, float]] = []

    class Watched(Run):
        def step(self, *batch: Any) -> float:
            if not self.step_seconds:
                factors = {g.get("lr_factor") for g in self.optimizer.param_groups}
                (layer, *_) = self.recipe.layers.values()  # type: ignore[union-attr]
                made.append((factors, float(layer.weight.values.detach().norm())))  # type: ignore[union-attr]
            return super().step(*batch)

    monkeypatch.setattr(training, "Run", Watched)
    for exponent, init in ((1.0, 1.0), (0.0, 0.0)):
        measure(TINY, Training(75, 1e-3, exponent, init, 0))
    (scaled, norm), (plain, small) = made
    assert scaled == {None, 4.0}
    assert plain == {None}
    assert small == pytest.approx(norm / 2)


def test_a_training_that_diverges_is_a_row() -> None:
    row = measure(TINY, Training(0, 1e30, 0.0, 1.0, 0))
    assert "diverged" in row
    assert sentences([row | {"seed": 0}])[0].startswith("Dense is best at")


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="seeds=0"):
        study(tmp_path, TINY, seeds=0)
    assert len(trainings((90, 50), (1e-3, 2e-3), (0.0, 1.0), range(2))) == 2 * (2 + 2 * 4 + 4)
