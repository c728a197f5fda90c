"""All recipes side by side: what is trained, what is kept, what is shown. No test of a time."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bench.harness.rows import work_off
from experiments.compare_recipes import study, training
from experiments.compare_recipes.page import sentences, time_of
from experiments.compare_recipes.study import NAME, compare, numbers, trainings
from experiments.compare_recipes.training import (
    PLAN,
    Stage,
    Training,
    final_density,
    flipped,
    masks,
    measure,
)
from gossamer.errors import ArgumentError, CheckpointError, GossamerError, RecipeError
from gossamer.recipes import RECIPES
from gossamer.train import GPT, GPTConfig, TrainConfig
from support.dying_training import dying
from support.training import TEXT

pytestmark = [pytest.mark.slow, pytest.mark.process]

TINY = replace(PLAN, steps=6, width=40, depth=1, heads=2, context=16, batch=2, data=TEXT)


RATES = {("dense", 0): 1e-3} | {(who, s): 1e-3 for who in RECIPES for s in (50, 75, 90)}


def call(out: Path, **options: Any) -> tuple[int, str]:
    told = io.StringIO()
    options = {"plan": TINY, "seeds": 1, "jobs": 1, "sparsities": [90]} | options
    code = compare(out, console=Console(file=told, width=200), **options)
    return code, told.getvalue()


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{NAME}.jsonl").read_text().splitlines()][1:]


def test_everything_is_trained_at_every_density() -> None:
    found = trainings(RATES, range(3), 600, RATES)
    assert len(found) == len(set(found)) == 3 * (1 + 3 * len(RECIPES) + 3)
    assert {cell.recipe for cell in found if cell.stage == Stage.PARTS} == {"imp"}
    assert {cell.steps for cell in found if cell.stage == Stage.PARTS} == {3000}
    assert {cell.run for cell in found if cell.recipe == "slope"} == {
        "slope@2:4", "slope@1:4", "slope@1:10"
    }  # fmt: skip


def test_every_recipe_fits_the_model_of_the_plan() -> None:
    plan = replace(PLAN, steps=24, batch=1, context=8, data=TEXT)
    fitting = {"structure-decay-geometric", "sparse-ift-doped", "bimask", "dense"}
    pairs = [pair for pair in RATES if pair[0] in fitting and pair[1] in (0, 90)]
    for cell in trainings(pairs, [0], 24, RATES):
        row = measure(plan, cell)
        assert "error" not in row, row


def test_rows_say_what_was_trained(tmp_path: Path) -> None:
    code, told = call(tmp_path, recipes=["slope", "rigl"], seeds=2)
    assert code == 0
    rows = {(r["recipe"], r["seed"]): r for r in rows_of(tmp_path) if r["stage"] != "time"}
    assert set(rows) == {(r, s) for r in ("dense", "slope", "rigl") for s in (0, 1)}
    assert rows["dense", 0]["density"] == 1.0
    assert rows["dense", 0]["val_loss"] != rows["dense", 1]["val_loss"]
    assert rows["slope", 0]["pattern"] == "1:10"
    assert rows["slope", 0]["density"] == pytest.approx(0.1, abs=0.002)
    assert rows["slope", 0]["state_bytes"] < rows["dense", 0]["state_bytes"]
    timed = [r for r in rows_of(tmp_path) if r["stage"] == "time"]
    assert {r["recipe"] for r in timed} == {"dense", "slope", "rigl"}
    assert all(r["step_seconds"] > 0 and r["dense_seconds"] > 0 for r in timed)
    table = (tmp_path / f"{NAME}.md").read_text()
    assert "| slope | 1:10 |" in table
    assert "±" in table
    assert (tmp_path / f"{NAME}.png").stat().st_size > 5_000
    assert "best is" in told


def test_each_recipe_gets_the_rate_that_a_short_training_chose(tmp_path: Path) -> None:
    call(tmp_path, recipes=["static"], rates=[1e-9, 1e-2], tune_steps=4, seeds=2, times=False)
    rows = rows_of(tmp_path)
    tuned = [r for r in rows if r["stage"] == "tune"]
    assert [(r["recipe"], r["lr"], r["steps"], r["seed"]) for r in tuned] == [
        (who, lr, 4, 0) for who in ("dense", "static") for lr in (1e-9, 1e-2)
    ]
    losses = {(r["recipe"], r["lr"]): r["val_loss"] for r in tuned}
    for who in ("dense", "static"):
        best = min((1e-9, 1e-2), key=lambda lr: losses[who, lr])
        assert best == 1e-2
        assert [r["lr"] for r in rows if r["stage"] == "train" and r["recipe"] == who] == [best] * 2
    assert not [r for r in rows if r["stage"] == "time"]
    call(tmp_path, recipes=["static"], rates=[1e-9, 1e-2], tune_steps=4, seeds=2)
    assert rows_of(tmp_path)[: len(rows)] == rows
    assert [r["recipe"] for r in rows_of(tmp_path)[len(rows) :]] == ["dense", "static"]
    assert "| static | 90% | 0.01 |" in (tmp_path / f"{NAME}.md").read_text()


def test_a_recipe_that_sets_weights_back_is_also_shown_with_all_steps_a_part(
    tmp_path: Path,
) -> None:
    call(tmp_path, recipes=["imp"])
    rows = [r for r in rows_of(tmp_path) if r["recipe"] == "imp"]
    assert {r["stage"]: r["steps"] for r in rows} == {"train": 6, "parts": 36, "time": 24}
    one, longer = (time_of(name, 90, rows_of(tmp_path)) for name in ("imp", "imp, equal parts"))
    assert one is not None
    assert longer == pytest.approx(6 * one)
    assert "| imp, equal parts |" in (tmp_path / f"{NAME}.md").read_text()


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole"
    call(whole, recipes=["ste", "static"])
    trained: list[Training] = []

    def stopped(plan: TrainConfig, cell: Training) -> dict[str, Any]:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(cell)
        return measure(plan, cell)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(study, "measure", stopped)
        code, told = call(out, recipes=["ste", "static"])
    assert code == 130
    assert "stopped" in told
    assert [r["recipe"] for r in rows_of(out)] == ["dense", "ste"]
    path = out / f"{NAME}.jsonl"
    path.write_text(path.read_text() + '{"recipe": "static", "spars')  # killed in the middle
    assert call(out, recipes=["ste", "static"])[0] == 0
    times = ("step_seconds", "dense_seconds")
    plain = [{k: v for k, v in r.items() if k not in times} for r in rows_of(out)]
    assert plain == [{k: v for k, v in r.items() if k not in times} for r in rows_of(whole)]
    before = path.read_bytes()
    assert call(out, recipes=["ste", "static"])[0] == 0
    assert path.read_bytes() == before


def test_other_options_or_versions_are_refused(tmp_path: Path) -> None:
    call(tmp_path, recipes=["static"])
    path = tmp_path / f"{NAME}.jsonl"
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="has plan"):
        call(tmp_path, plan=replace(TINY, steps=7), recipes=["static"])
    assert path.read_bytes() == before
    path.write_text(path.read_text().replace(torch.__version__, "1.0"))
    with pytest.raises(CheckpointError, match="has versions"):
        call(tmp_path, recipes=["static"])
    assert call(tmp_path, recipes=["static"], overwrite=True)[0] == 0
    assert path.read_bytes().startswith(before.splitlines()[0])
    path.write_text("what is this\n")
    with pytest.raises(CheckpointError, match="cannot be read"):
        call(tmp_path, recipes=["static"])


def test_a_recipe_that_fails_is_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = training._trained

    def failing(plan: TrainConfig, cell: Training) -> dict[str, Any]:
        if cell.recipe == "ste":
            raise RuntimeError("no luck")
        return trained(plan, cell)

    monkeypatch.setattr(training, "_trained", failing)
    assert call(tmp_path, recipes=["ste", "static"])[0] == 0
    table = (tmp_path / f"{NAME}.md").read_text()
    assert "| ste | failed |" in table
    assert "no luck" in table
    assert "| static | 90% |" in table
    monkeypatch.setattr(training, "_trained", trained)
    call(tmp_path, recipes=["ste", "static"])  # what has failed is tried again
    assert "failed" not in (tmp_path / f"{NAME}.md").read_text()


def test_a_process_that_dies_takes_nobody_with_it() -> None:
    missing = [Training("dense", 0, seed, 6, 1e-3) for seed in range(4)]
    rows = list(work_off(partial(dying, TINY), missing, 2))
    assert sorted((r["seed"], r.get("error", "")) for r in rows) == [
        (0, ""), (1, "its process died"), (2, ""), (3, "")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds=0"),
        ({"jobs": 0}, "jobs=0"),
        ({"sparsities": [60]}, "density 60; choose of"),
        ({"rates": []}, r"rates \[\]"),
        ({"rates": [0.1, -1.0]}, r"rates \[0.1, -1.0\]"),
        ({"tune_steps": 0}, "tune_steps=0"),
        ({"recipes": ["slop"]}, "no recipe 'slop'"),
    ],
)
def test_options_are_checked(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ArgumentError, RecipeError), match=message):
        call(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_no_steps_are_refused() -> None:
    with pytest.raises(GossamerError, match="steps=0"):
        replace(TINY, steps=0)


def test_lists_of_numbers() -> None:
    assert numbers("50, 90%", "densities") == [50, 90]
    with pytest.raises(GossamerError, match="--densities got 'many'"):
        numbers("many", "densities")


def test_flips_and_density_are_counted() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(256, 16, 40, 1, 2))
    assert final_density(model, TINY) == 1.0
    assert masks({}) == {}
    a, b = torch.tensor([True, False]), torch.tensor([False, True])
    assert flipped({"x": a}, {"x": b}) == 1.0
    assert flipped({"x": a}, {"x": a}) == 0.0


def test_sentences_name_the_winner_and_the_loser() -> None:
    rows = [
        {
            "recipe": who,
            "sparsity": s,
            "seed": seed,
            "stage": "train",
            "val_loss": loss + seed * 0.1,
        }
        for who, s, loss in (("dense", 0, 2.0), ("a", 50, 2.1), ("b", 50, 2.12), ("c", 50, 3.0))
        for seed in (0, 1)
    ]
    assert sentences(rows)[1] == (
        "50 %: best is a (2.1500), dense has 2.0500; within one standard deviation: b (+0.0200); "
        "last is c (+0.9000)"
    )
