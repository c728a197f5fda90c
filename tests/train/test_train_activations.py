"""`gossamer train` with sparse activations, and runs that get the same seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from typer.testing import CliRunner

from gossamer.commands import app
from gossamer.errors import ArgumentError, PatternError, RecipeError
from gossamer.nn import ActivationSparseFFN, SparseLinear
from gossamer.recipes import ActivationL1
from gossamer.train import Run, RunSpec, TrainConfig, read_metrics, train
from gossamer.train import plan as plan_module
from gossamer.train.activations import lower_gates
from gossamer.train.checkpoint import CHECKPOINT
from gossamer.train.data import load_corpus
from gossamer.train.metrics import METRICS
from gossamer.train.model import dense_parameters
from gossamer.train.plan import planned
from gossamer.train.plot import PICTURE
from gossamer.train.resume import resumed_config
from support.training import QUIET, TEXT, TINY, fingerprint, interrupt_at

RUNS = ("dense", "2:4:v4+activations", "slope@2:4+activations")
PLAN = (6, 10, 7)
SMALL = replace(
    TINY, runs=RUNS, equal_seconds=True, seconds=1.0, run_steps=PLAN, depth=2, batch=32,
    eval_every=4, gated=True, target_share=0.1,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _short_validation() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gossamer.train.session.VALIDATION_TOKENS", 1024)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    assert not train(SMALL, out, console=QUIET).interrupted
    return out


def test_runs_are_written_with_activations() -> None:
    assert replace(TINY, runs=("dense + activations",)).runs == ("dense+activations",)
    assert str(RunSpec.parse("slope@2:4:v4+activations")) == "slope@2:4:v4+activations"
    with pytest.raises(PatternError, match="topk or sinkhorn; or activations"):
        RunSpec.parse("dense+activation")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"target_share": 0.0}, RecipeError, "target_share=0.0"),
        ({"seconds": -1.0}, ArgumentError, "seconds=-1.0"),
        ({"seconds": float("nan")}, ArgumentError, "seconds=nan"),
        ({"equal_seconds": False}, ArgumentError, "without equal_seconds"),
        ({"run_steps": (1, 2)}, ArgumentError, "for 3 runs"),
        ({"run_steps": (1, 2, 0)}, ArgumentError, "run_steps=0; it must be at least 1"),
    ],
)
def test_options_are_checked(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        replace(SMALL, **change)


@pytest.mark.parametrize("gated", [False, True])
def test_the_network_is_the_dense_one_with_another_activation(gated: bool) -> None:
    config = replace(SMALL, gated=gated)
    dense, sparse = (Run(name, config, 256) for name in ("dense", "2:4:v4+activations"))
    mlp, ffn = dense.model.blocks[1].mlp, sparse.model.blocks[1].mlp
    assert isinstance(ffn, ActivationSparseFFN)
    assert isinstance(sparse.model.blocks[1].attention.qkv, SparseLinear)
    assert torch.equal(ffn.down, mlp.down.weight.t())
    assert torch.equal(ffn.gate, mlp.gate.weight if gated else mlp.up.weight)
    assert torch.equal(ffn.up, mlp.up.weight) if gated else ffn.up is None
    assert dense_parameters(dense.model.config) == sum(p.numel() for p in dense.parameters)
    assert sparse.density < 1.0
    decays = {
        id(p): group["weight_decay"]
        for group in sparse.optimizer.param_groups
        for p in group["params"]
    }
    assert all(decays[id(p)] == 0.1 for p in ffn.parameters())


# ---- equal seconds -------------------------------------------------------------------------------
def test_each_run_takes_its_own_steps_evenly_spread(finished: Path) -> None:
    rows = read_metrics(finished / METRICS)
    for name, steps in zip(RUNS, PLAN, strict=True):
        mine = [row for row in rows if row["run"] == name]
        assert [row["step"] for row in mine] == list(range(1, steps + 1))
        assert {row["step"] for row in mine if row["val_loss"] is not None} == {
            *range(4, steps + 1, 4), steps,
        }  # fmt: skip
        assert mine[-1]["lr"] == pytest.approx(0.1 * SMALL.lr)
    counts = dict.fromkeys(RUNS, 0)
    for row in rows:
        counts[row["run"]] += 1
        shares = [counts[name] / steps for name, steps in zip(RUNS, PLAN, strict=True)]
        assert max(shares) - min(shares) <= 2 / min(PLAN)


def test_a_run_in_company_computes_what_it_computes_alone(tmp_path: Path, finished: Path) -> None:
    together = [row for row in read_metrics(finished / METRICS) if row["run"] == RUNS[1]]
    alone = replace(SMALL, runs=RUNS[1:2], run_steps=PLAN[1:2])
    train(alone, tmp_path, console=QUIET)
    losses = [row["loss"] for row in read_metrics(tmp_path / METRICS)]
    assert losses == [row["loss"] for row in together]


@pytest.mark.parametrize("step", [3, 9])
def test_resuming_equals_no_interruption_bit_for_bit(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, RUNS[1])
        result = train(SMALL, tmp_path, console=QUIET)
    assert result.interrupted
    assert (result.step, result.steps) == (step, 10)
    torch.manual_seed(999)
    assert train(resumed_config(tmp_path), tmp_path, resume=True, console=QUIET).step == 10
    assert fingerprint(tmp_path) == fingerprint(finished)


def test_metrics_have_the_live_shares_and_measuring_changes_nothing(
    tmp_path: Path, finished: Path
) -> None:
    rows = read_metrics(finished / METRICS)
    for row in rows:
        assert ("live" in row) == ("activations" in row["run"])
        if "live" in row:
            assert len(row["live"]) == 2
            assert all(0 < share < 1 for share in row["live"])
    last = [row for row in rows if row["run"] == RUNS[1]][-1]
    assert last["strength"] > 0
    assert imread(finished / PICTURE).shape[0] > 1500  # three rows of panels
    train(replace(SMALL, eval_every=100), tmp_path, console=QUIET)
    assert [row["loss"] for row in read_metrics(tmp_path / METRICS)] == [
        row["loss"] for row in rows
    ]


def test_the_plan_gives_each_run_the_steps_that_the_budget_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unplanned = replace(SMALL, run_steps=None, seconds=None, steps=30)
    seconds = dict(zip(RUNS, (0.5, 0.2, 0.3), strict=True))
    monkeypatch.setattr(plan_module, "_step_seconds", lambda *_: seconds)
    corpus = load_corpus(TEXT, "byte", 16)
    assert planned(unplanned, corpus).run_steps == (30, 75, 50)
    assert planned(replace(unplanned, seconds=6.0), corpus).run_steps == (12, 30, 20)
    alone = replace(unplanned, runs=RUNS[1:])
    assert planned(alone, corpus).run_steps == (30, 20)


def test_a_probe_has_the_target_share_of_live_activations() -> None:
    run = Run(RUNS[1], SMALL, 256)
    tokens = torch.randint(256, (4, 16))
    lower_gates(run.model, tokens, 0.1)
    run.model(tokens)
    for layer in ActivationSparseFFN.find_in(run.model).values():
        assert layer.live_share == pytest.approx(0.1, rel=0.25)


def test_the_time_of_a_step_is_the_mean_along_the_ramp(monkeypatch: pytest.MonkeyPatch) -> None:
    medians = iter([{RUNS[0]: 4.0, RUNS[1]: 2.0}, {RUNS[1]: 1.0}])

    def take(runs: dict[str, Run], batches: object) -> dict[str, float]:
        for run in runs.values():
            if run.activations is not None:
                run.activations.state["shares"] = torch.tensor([0.4, 0.6])
        return next(medians)

    monkeypatch.setattr(plan_module, "_medians", take)
    config = replace(SMALL, runs=RUNS[:2], run_steps=None, target_share=0.05)
    seconds = plan_module._step_seconds(config, load_corpus(TEXT, "byte", 16))
    mean = ActivationL1(target_share=0.05).mean_share(0.5)
    assert seconds == {RUNS[0]: 4.0, RUNS[1]: pytest.approx(1.0 + (mean - 0.05) / 0.45)}


def test_the_command_line_gives_equal_seconds(tmp_path: Path) -> None:
    call = (
        "train", "--compare", "dense,dense+activations", "--equal-seconds", "--steps", "8",
        "--batch", "32", "--context", "16", "--width", "32", "--depth", "1", "--heads", "2",
        "--gated", "--target-share", "0.2", "--threads", "1", "--data", TEXT,
        "--out", str(tmp_path),
    )  # fmt: skip
    result = CliRunner().invoke(app, [*call])
    assert result.exit_code == 0, result.output
    assert "steps: dense 8, dense+activations" in result.output
    config: TrainConfig = resumed_config(tmp_path)
    assert (config.equal_seconds, config.target_share, config.gated) == (True, 0.2, True)
    assert config.run_steps is not None
    assert config.run_steps[0] == 8
    assert (tmp_path / CHECKPOINT).exists()
