"""The experiment on wide patterns: what is trained, kept and shown."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from experiments.width_cost.page import by_kind, costs
from experiments.width_cost.study import NAME, best_rates, grid, study
from experiments.width_cost.training import ByteModel, Plan, Training, measure
from gossamer.errors import ArgumentError
from support.training import TEXT

pytestmark = [pytest.mark.slow, pytest.mark.process]

TINY = Plan(steps=12, batch=2, context=16, width=64, data=TEXT)


def call(out: Path, **options: Any) -> list[dict[str, Any]]:
    console = Console(file=io.StringIO(), width=200)
    chosen = {"sparsities": [75], "vectors": [1, 4], "blocks": [16], "lrs": [1e-3, 2e-3]}
    assert study(out, TINY, console=console, **{**chosen, "seeds": 1, **options}) == 0
    return [json.loads(line) for line in (out / f"{NAME}.jsonl").read_text().splitlines()][1:]


def test_rates_are_chosen_first_and_the_grid_follows(tmp_path: Path) -> None:
    rows = call(tmp_path)
    assert [row["recipe"] for row in rows[:6]] == ["dense"] * 2 + ["static"] * 2 + ["srste"] * 2
    rates = best_rates(rows)
    for row in rows[6:]:
        assert row["lr"] == rates[row["recipe"], 75]
    assert {row["pattern"] for row in rows[6:]} == {"1:4", "block 16x16 75%"}
    for row in rows:
        assert row["density"] == (1.0 if row["recipe"] == "dense" else 0.25)
        assert (row["moved"] > 0.0) == (row["recipe"] == "srste")
    more = call(tmp_path, seeds=2)
    assert more[: len(rows)] == rows
    assert len(more) == len(rows) + 7
    table = (tmp_path / f"{NAME}.md").read_text()
    assert "| V = 4 |" in table
    assert "| block 16 |" in table
    assert (tmp_path / f"{NAME}.png").stat().st_size > 5_000


def test_columns_that_no_row_keeps_are_counted() -> None:
    row = measure(TINY, Training("static", "1:4:v64", 1e-3, 0))
    assert row["dead_columns"] == 0.75  # all 64 rows share one list


def test_the_whole_grid() -> None:
    rates = {("dense", 0): 1e-3} | {(r, s): 1e-3 for r in ("static", "srste") for s in (50, 75)}
    found = grid((50, 75), (1, 128), (16,), rates, range(2))
    assert len(set(found)) == len(found) == 2 * (1 + 2 * 2 * 3)
    for one in found[1:13]:
        one.make_recipe()


def test_costs_are_of_the_same_seed_and_rate() -> None:
    one = {"recipe": "static", "seed": 0, "lr": 1e-3}
    rows = [
        {**one, "pattern": "1:4", "val_loss": 2.0},
        {**one, "pattern": "1:4:v4", "val_loss": 2.1},
        {**one, "pattern": "1:4:v4", "val_loss": 1.0, "lr": 2e-3},
        {**one, "pattern": "1:4:v4", "val_loss": 2.5, "seed": 1},
    ]
    assert len(by_kind(rows)["static", 75]) == 3
    (tiles,) = costs(rows).values()
    assert tiles[False, 4] == [pytest.approx(0.1)]


def test_a_prediction_knows_the_last_eight_bytes() -> None:
    torch.manual_seed(0)
    model = ByteModel(256, 64, 2)
    tokens = torch.randint(256, (1, 16))
    changed = tokens.clone()
    changed[0, 5] += 1
    differs = (model(tokens) != model(changed % 256)).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == list(range(5, 13))


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="jobs=0"):
        study(tmp_path, TINY, jobs=0)
    with pytest.raises(ArgumentError, match="steps=11; it must be at least 12"):
        study(tmp_path, replace(TINY, steps=11))
