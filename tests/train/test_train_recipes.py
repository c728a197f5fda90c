"""`gossamer train --recipe`: options, weight decay, checkpoints, metrics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gossamer.commands import app
from gossamer.errors import CheckpointError, GossamerError, PatternError, RecipeError
from gossamer.recipes import RigL, SLoPe
from gossamer.train import Run, RunSpec, load_checkpoint, read_metrics, save_checkpoint, train
from gossamer.train.checkpoint import CHECKPOINT
from gossamer.train.folder import LOCK
from gossamer.train.groups import recipe_groups
from gossamer.train.metrics import METRICS
from gossamer.train.plot import PICTURE
from gossamer.train.resume import resumed_config
from gossamer.train.spec import parse_options
from support.training import QUIET, TEXT, TINY, fingerprint, interrupt_at

pytestmark = pytest.mark.slow

RUNS = ("dense", "slope-adapters@1:4", "rigl@90%", "srste@2:4:v4", "structure-decay-stepwise@1:4")
SMALL = replace(TINY, runs=RUNS, steps=12, depth=1, batch=2, eval_every=5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    assert not train(SMALL, out, console=QUIET).interrupted
    return out


def test_runs_are_written_as_names_and_patterns_are() -> None:
    config = replace(TINY, runs=("dense", " RigL@ 90 %", "mask_decay_linear", "2:4", "set+topk"))
    assert config.runs == (
        "dense", "rigl@90%", "mask-decay-linear@2:4", "2:4", "set@50%+topk"
    )  # fmt: skip
    assert str(RunSpec.parse("slope@2:4:v4")) == "slope@2:4:v4"
    assert parse_options(["a-b=1e-3", "c=none", "d=None"]) == {"a_b": 1e-3, "c": "none", "d": None}


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"runs": ("slopp@2:4",)}, RecipeError, "no recipe 'slopp'; choose one of slope"),
        ({"runs": ("slope@3:2",)}, PatternError, "n=3, m=2"),
        ({"runs": ("srste@",)}, PatternError, "the text of a pattern"),
        ({"runs": ("rigl@90%", "rigl@90 %")}, PatternError, "each must be named once"),
        ({"runs": ("rigl",), "penalty": "l1", "lam": 0.1}, RecipeError, "one or the other"),
        ({"runs": ("dense",), "recipe_options": ("a=1",)}, RecipeError, "with 0 recipes"),
        ({"runs": ("slope",), "recipe_options": ("a",)}, RecipeError, "'a'; write each once"),
        ({"runs": ("slope",), "recipe_options": ("a=1",)}, RecipeError, "option 'a'; it has"),
        ({"runs": ("slope",), "recipe_options": ("adapter_rank=-1",)}, RecipeError, "-1"),
    ],
)
def test_options_are_checked(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        TINY.with_options(**change)


def test_a_pattern_that_a_layer_cannot_hold_names_it(tmp_path: Path) -> None:
    with pytest.raises(PatternError, match=r"qkv.*in_features=32 with pattern 1:10"):
        train(replace(SMALL, runs=("srste@1:10",)), tmp_path, console=QUIET)
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_schedule_longer_than_the_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="total_steps=2"):
        train(replace(SMALL, runs=("structure-decay-stepwise@1:8",), steps=2), tmp_path)


def test_options_reach_the_recipe() -> None:
    config = replace(SMALL, runs=("slope@1:4",), recipe_options=("adapter_rank=2",), seed=3)
    run = Run("slope@1:4", config, 256)
    assert isinstance(run.recipe, SLoPe)
    assert (run.recipe.adapter_rank, run.recipe.seed) == (2, 3)
    assert isinstance(Run("rigl@90%", SMALL, 256).recipe, RigL)


@pytest.mark.parametrize("name", ["slope-adapters@1:4", "srste@2:4", "autosparse@50%"])
def test_matrices_decay_and_thresholds_norms_and_embeddings_do_not(name: str) -> None:
    run = Run(name, SMALL, 256)
    decays = {
        id(p): group["weight_decay"]
        for group in run.optimizer.param_groups
        for p in group["params"]
    }
    assert len(decays) == len(run.parameters)
    for key, parameter in run.model.named_parameters():
        matrix = key.startswith("blocks") and key.endswith((".weight", ".values"))
        expected = 0.1 if matrix and "norm" not in key else 0.0
        assert decays[id(parameter)] == expected, key
    assert recipe_groups(run.recipe, run.model, 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [3, 11])
def test_resuming_equals_no_interruption_bit_for_bit(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, RUNS[1])
        assert train(SMALL, tmp_path, console=QUIET).step == step
    torch.manual_seed(999)
    assert train(resumed_config(tmp_path), tmp_path, resume=True, console=QUIET).step == 12
    assert fingerprint(tmp_path) == fingerprint(finished)


def test_another_recipe_or_pattern_does_not_resume(tmp_path: Path, finished: Path) -> None:
    for name in (CHECKPOINT, METRICS):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for runs in (("dense", *RUNS[2:]), ("dense", "slope-adapters@2:4", *RUNS[2:])):
        with pytest.raises(CheckpointError, match="runs="):
            resumed_config(tmp_path, runs=runs)
        with pytest.raises(CheckpointError, match="other options"):
            train(replace(SMALL, runs=runs), tmp_path, resume=True, console=QUIET)
    state = load_checkpoint(tmp_path / CHECKPOINT)
    state["runs"]["rigl@90%"]["recipe"]["recipe"] = "SET()"
    save_checkpoint(tmp_path / CHECKPOINT, state)
    with pytest.raises(CheckpointError, match=r"'SET\(\)'"):
        train(SMALL, tmp_path, resume=True, console=QUIET)
    (tmp_path / CHECKPOINT).write_bytes(before[CHECKPOINT])
    (tmp_path / LOCK).unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_metrics_tell_what_masks_do_and_measuring_changes_nothing(
    tmp_path: Path, finished: Path
) -> None:
    rows = [row for row in read_metrics(finished / METRICS) if "masks" in row]
    assert {(row["run"], row["step"]) for row in rows} == {
        (run, step) for run in RUNS[1:] for step in (5, 10, 12)
    }
    at = {row["run"]: row["masks"] for row in rows}
    assert at["slope-adapters@1:4"]["flips"] == 0
    assert at["slope-adapters@1:4"]["density"] == 0.25
    assert 0.2 < at["slope-adapters@1:4"]["double_pruned"] < 0.45
    assert sum(row["masks"]["flips"] for row in rows if row["run"] == "rigl@90%") > 0
    assert len(at["rigl@90%"]["layers"]) == 4
    assert (finished / PICTURE).stat().st_size > 10_000
    train(replace(SMALL, eval_every=100), tmp_path, console=QUIET)
    losses = [row["loss"] for row in read_metrics(tmp_path / METRICS)]
    assert losses == [row["loss"] for row in read_metrics(finished / METRICS)]


def test_the_command_line_trains_by_a_recipe(tmp_path: Path) -> None:
    tiny = (
        "--steps", "3", "--batch", "2", "--context", "16", "--width", "32", "--depth", "1",
        "--heads", "2", "--threads", "1", "--data", TEXT, "--out", str(tmp_path),
    )  # fmt: skip
    call = ("train", "--recipe", "slope", "--pattern", "1:4", "--recipe-option", "adapter_rank=2")
    result = CliRunner().invoke(app, [*call, *tiny])
    assert result.exit_code == 0, result.output
    assert "slope@1:4" in result.output
    assert load_checkpoint(tmp_path / CHECKPOINT)["config"]["runs"] == ("slope@1:4",)
    result = CliRunner().invoke(app, ["train", "--recipe", "slope", "--compare", "dense"])
    assert result.exit_code == 2
    result = CliRunner().invoke(app, ["train", "--recipe", "slip", *tiny])
    assert isinstance(result.exception, GossamerError)


def test_scaled_rates_reach_every_sparse_weight_and_survive_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(
        SMALL, runs=("dense", "75%", "gmp-sparse@75%"), scale_lr=1.0, data=TEXT, eval_every=4
    )
    factors = {
        name: [group.get("lr_factor") for group in Run(name, config, 256).optimizer.param_groups]
        for name in config.runs
    }
    assert factors["dense"] == [None] * 2
    assert factors["75%"] == [4.0] * 4 + [None]
    assert factors["gmp-sparse@75%"] == [None] + [1.0] * 4
    whole = tmp_path / "whole"
    assert not train(config, whole, console=QUIET).interrupted
    state = load_checkpoint(whole / CHECKPOINT)["runs"]["gmp-sparse@75%"]["optimizer"]
    assert [group.get("lr_factor") for group in state["param_groups"]] == [None] + [4.0] * 4
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7, "75%")
        assert train(config, out, console=QUIET).interrupted
    assert resumed_config(out) == config
    train(resumed_config(out), out, resume=True, console=QUIET)
    assert fingerprint(out) == fingerprint(whole)


def test_a_scaled_rate_is_an_option_of_the_command(tmp_path: Path) -> None:
    options = ["--pattern", "75%", "--steps", "1", "--width", "32", "--depth", "1", "--batch", "1"]
    given = [*options, "--heads", "2", "--context", "8", "--data", TEXT, "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["train", *given, "--scale-lr", "0.5"])
    assert result.exit_code == 0, result.output
    assert resumed_config(tmp_path).scale_lr == 0.5
