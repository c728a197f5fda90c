"""The demo GPT with a mixture of experts in each block, and what a training logs of it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from typer.testing import CliRunner

from gossamer.commands import app
from gossamer.errors import ArgumentError, CheckpointError, PatternError
from gossamer.nn import SinkhornRouter, SparseLinear
from gossamer.train import (
    GPT,
    GPTConfig,
    Run,
    TrainConfig,
    load_checkpoint,
    read_metrics,
    resumed_config,
    save_checkpoint,
    train,
)
from gossamer.train.checkpoint import CHECKPOINT
from gossamer.train.metrics import METRICS, busiest
from gossamer.train.model import ROUTERS, Mixture, dense_parameters
from support.training import QUIET, TEXT, TINY, fingerprint, interrupt_at

pytestmark = pytest.mark.slow

SIZES = GPTConfig(vocabulary=11, context=8, width=16, depth=2, heads=2, experts=4, router="topk")
ROUTED = replace(TINY, runs=("dense", "dense+topk", "2:4:v4+sinkhorn"), experts=4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    assert not train(ROUTED, out, console=QUIET).interrupted
    return out


# ---- the model -----------------------------------------------------------------------------------
@pytest.mark.parametrize("router", ROUTERS)
def test_each_token_goes_through_its_expert_alone(router: str) -> None:
    mixture = Mixture(SIZES, router).double().eval()
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    y = mixture(x)
    for i in range(3):
        for j in range(5):
            scores = mixture.router.weight @ x[i, j]
            if isinstance(mixture.router, SinkhornRouter):
                gates, best = scores.sigmoid(), int((scores + mixture.router.balance).argmax())
            else:
                gates, best = scores.softmax(0), int(scores.argmax())
            expert = mixture.experts[best]
            out = expert.down(F.gelu(expert.up(x[i, j])))
            torch.testing.assert_close(y[i, j], gates[best] * out, rtol=0, atol=1e-12)
    assert mixture.load is not None
    assert int(mixture.load.sum()) == 15


@pytest.mark.parametrize("router", ROUTERS)
def test_in_evaluation_no_position_sees_a_later_one(router: str) -> None:
    model = GPT(replace(SIZES, router=router)).double()
    for _ in range(5):
        model(torch.randint(11, (3, 8)))  # a router may learn a balance
    model.eval()
    tokens = torch.randint(11, (3, 8))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-12)
    assert (before[:, 5:] - after[:, 5:]).abs().amax(-1).min() > 1e-6


def test_an_expert_without_tokens_has_a_gradient_of_zero() -> None:
    mixture = Mixture(SIZES, "topk")
    with torch.no_grad():
        mixture.router.weight.zero_()  # a tie: the first expert gets everything
    mixture(torch.randn(6, 16)).sum().backward()
    assert mixture.load is not None
    assert sorted(mixture.load.tolist()) == [0, 0, 0, 6]
    for parameter in mixture.parameters():
        assert parameter.grad is not None
    idle = mixture.experts[int(mixture.load.argmin())]
    assert float(idle.up.weight.grad.abs().max()) == 0.0


def test_runs_with_a_router_start_alike_and_count_their_experts() -> None:
    models = [Run(f"dense+{router}", ROUTED, 256).model for router in ROUTERS]
    one, two = (dict(model.named_parameters()) for model in models)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    for model in models:
        assert dense_parameters(model.config) == sum(p.numel() for p in model.parameters())
    sparse = Run("2:4:v4+topk", ROUTED, 256).model
    layers = [name for name, m in sparse.named_modules() if isinstance(m, SparseLinear)]
    assert len(layers) == 2 * (2 + 4 * 2)
    assert "blocks.1.mlp.experts.3.down" in layers


# ---- options -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"runs": ("dense+base",)},
            PatternError,
            "'dense.base'; after . it needs a router: write topk or sink",
        ),
        ({"runs": ("dense+",)}, PatternError, "after . it needs a router"),
        ({"runs": ("+topk",)}, PatternError, '"dense" for the dense network'),
        ({"runs": ("dense+topk", " dense + topk ")}, PatternError, "named once"),
        ({"experts": 0}, ArgumentError, "experts=0; it must be at least 1"),
    ],
)
def test_options_are_checked(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        replace(TINY, **change)


def test_names_of_runs_are_brought_into_one_form() -> None:
    runs = TrainConfig(runs=("dense", "dense + topk", " 2:4 : v4+sinkhorn")).runs
    assert runs == ("dense", "dense+topk", "2:4:v4+sinkhorn")


@pytest.mark.parametrize("change", [{"experts": 0}, {"router": "hash"}])
def test_model_options_are_checked(change: dict[str, Any]) -> None:
    name = next(iter(change))
    with pytest.raises(ArgumentError, match=f"GPT got {name}="):
        replace(SIZES, **change)


# ---- training ------------------------------------------------------------------------------------
def test_rows_of_routed_runs_hold_the_load_of_each_expert(finished: Path) -> None:
    rows = read_metrics(finished / METRICS)
    for row in rows:
        if row["run"] == "dense":
            assert "expert_load" not in row
            continue
        assert (row["val_expert_load"] is None) == (row["val_loss"] is None)
        for load in (row["expert_load"], row["val_expert_load"] or row["expert_load"]):
            assert [len(shares) for shares in load] == [4, 4]
            assert all(math.isclose(sum(shares), 1) for shares in load)
        if row["run"].endswith("sinkhorn"):
            assert busiest(row["expert_load"]) <= 1.25


def test_the_logged_load_is_that_of_the_whole_validation() -> None:
    run = Run("dense+topk", ROUTED, 256)
    inputs, targets = torch.randint(256, (2, 11, 16)).unbind(0)
    seen: dict[int, Tensor] = {}
    for i, mixture in enumerate(m for m in run.model.modules() if isinstance(m, Mixture)):
        mixture.register_forward_hook(
            lambda module, _, __, i=i: seen.update({i: seen.get(i, 0) + module.load})
        )
    run.evaluate(inputs, targets)  # 11 windows: batches of 4, 4 and 3
    for i in (0, 1):
        assert int(seen[i].sum()) == 11 * 16
        assert run.val_expert_load[i] == pytest.approx((seen[i] / (11 * 16)).tolist())


def test_the_plan_keeps_the_experts_busier_than_top_k(tmp_path: Path) -> None:
    config = replace(ROUTED, runs=("dense+topk", "dense+sinkhorn"), steps=40, lr=3e-3, batch=16)
    summaries = train(config, tmp_path, console=QUIET).summaries
    topk, sinkhorn = (summary.busiest for summary in summaries)
    assert topk is not None
    assert sinkhorn is not None
    assert 1 <= sinkhorn < 0.8 * topk
    last = [row for row in read_metrics(tmp_path / METRICS) if row["step"] == 40]
    assert [busiest(row["val_expert_load"]) for row in last] == [topk, sinkhorn]
    for summary in summaries:
        assert summary.val_loss is not None
        assert summary.val_loss < math.log(256) - 2


def test_a_run_without_a_router_computes_what_it_computed_before(
    tmp_path: Path, finished: Path
) -> None:
    result = train(replace(TINY, runs=("dense",)), tmp_path, console=QUIET)
    assert result.summaries[0].busiest is None
    alone = read_metrics(tmp_path / METRICS)
    together = [row for row in read_metrics(finished / METRICS) if row["run"] == "dense"]
    assert [row["loss"] for row in alone] == [row["loss"] for row in together]
    assert set(alone[0]) == {
        "run", "step", "loss", "val_loss", "seconds", "tokens_per_second", "lr",
    }  # fmt: skip


@pytest.mark.parametrize("step", [1, 7])
def test_resuming_equals_no_interruption_bit_for_bit(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, "2:4:v4+sinkhorn")
        assert train(ROUTED, tmp_path, console=QUIET).step == step
    assert not train(resumed_config(tmp_path), tmp_path, resume=True, console=QUIET).interrupted
    assert fingerprint(tmp_path) == fingerprint(finished)


def test_a_checkpoint_of_a_version_without_experts_resumes(tmp_path: Path) -> None:
    config = replace(TINY, runs=("dense",), steps=4)
    train(config, tmp_path, console=QUIET)
    whole = fingerprint(tmp_path)
    state = load_checkpoint(tmp_path / CHECKPOINT)
    del state["config"]["experts"]
    save_checkpoint(tmp_path / CHECKPOINT, state)
    assert resumed_config(tmp_path) == config
    train(resumed_config(tmp_path), tmp_path, resume=True, console=QUIET)
    state = load_checkpoint(tmp_path / CHECKPOINT)
    assert "experts" not in state["config"]  # a finished run is not written again
    state["config"]["experts"] = config.experts
    save_checkpoint(tmp_path / CHECKPOINT, state)
    assert fingerprint(tmp_path) == whole
    state["config"]["oracles"] = 3
    save_checkpoint(tmp_path / CHECKPOINT, state)
    with pytest.raises(CheckpointError, match="no training options that this version knows"):
        resumed_config(tmp_path)


def test_bfloat16_trains(tmp_path: Path) -> None:
    config = replace(ROUTED, dtype="bfloat16", runs=("dense+topk", "2:4:v4+sinkhorn"))
    train(config, tmp_path, console=QUIET)
    rows = read_metrics(tmp_path / METRICS)
    assert all(rows[i]["loss"] > rows[i + 22]["loss"] for i in range(2))


def test_the_command_compares_routers(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app,
        [
            "train", "--compare", "dense+topk,dense+sinkhorn", "--experts", "3", "--steps", "2",
            "--batch", "2", "--context", "8", "--width", "32", "--depth", "1", "--heads", "2",
            "--threads", "1", "--data", TEXT, "--out", str(tmp_path),
        ],
        env={"COLUMNS": "120"},
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "busiest" in result.output
    assert [len(row["expert_load"][0]) for row in read_metrics(tmp_path / METRICS)] == [3] * 4
