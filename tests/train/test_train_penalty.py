"""`gossamer train --penalty`: what is penalised, what is logged, and that resuming is exact."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import DTypeError, GossamerError
from gossamer.nn import SparseLinear
from gossamer.optim import ProxAdamW
from gossamer.prox import WGSEF, Lp, PenaltyError
from gossamer.train import PenaltyOptions, Run, TrainConfig, load_checkpoint, read_metrics, train
from gossamer.train.checkpoint import CHECKPOINT
from gossamer.train.metrics import METRICS
from gossamer.train.model import dense_parameters
from gossamer.train.resume import resumed_config
from support.training import QUIET, TINY, fingerprint, interrupt_at

pytestmark = pytest.mark.slow

PENALISED = replace(
    TINY, runs=("dense", "2:4:v4"), steps=30, lr=3e-3, eval_every=10,
    penalty=PenaltyOptions("wgsef", lam=0.3, k="25%"),
)  # fmt: skip
LINEARS = ["attention.qkv", "attention.out", "mlp.up", "mlp.down"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("penalised")
    assert not train(PENALISED, out, console=QUIET).interrupted
    return out


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Matrices of the linear layers, dense or sparse, by name."""
    return {
        name: module.weight.to_dense() if isinstance(module, SparseLinear) else module.weight
        for name, module in model.named_modules()
        if isinstance(module, SparseLinear | nn.Linear)
    }


def test_the_weights_of_linear_layers_have_the_penalty() -> None:
    for name in PENALISED.runs:
        run = Run(name, PENALISED, 256)
        assert isinstance(run.optimizer, ProxAdamW)
        having = [
            parameter
            for group in run.optimizer.param_groups
            if group["penalty"] is not None
            for parameter in group["param_names"]
        ]
        suffix = "weight" if name == "dense" else "weight.values"
        assert having == [f"blocks.{i}.{layer}.{suffix}" for i in (0, 1) for layer in LINEARS]
        everything = [n for group in run.optimizer.param_groups for n in group["param_names"]]
        assert sorted(everything) == sorted(n for n, _ in run.model.named_parameters())
        decays = {
            n for g in run.optimizer.param_groups if g["weight_decay"] for n in g["param_names"]
        }
        assert decays == set(having)


def test_excluded_layers_have_no_penalty() -> None:
    run = Run("dense", replace(PENALISED, exclude=("*.attention",)), 256)
    assert isinstance(run.optimizer, ProxAdamW)
    groups = [g for g in run.optimizer.param_groups if g["penalty"] is not None]
    names = [name for group in groups for name in group["param_names"]]
    assert names == [f"blocks.{i}.mlp.{layer}.weight" for i in (0, 1) for layer in ("up", "down")]


def test_rows_of_the_weights_vanish_and_the_metrics_count_them(finished: Path) -> None:
    rows = {
        (row["run"], row["step"]): row
        for row in read_metrics(finished / METRICS)
        if "groups" in row
    }
    assert sorted(rows) == [(run, step) for run in sorted(PENALISED.runs) for step in (10, 20, 30)]
    state = load_checkpoint(finished / CHECKPOINT)["runs"]
    for name in PENALISED.runs:
        run = Run(name, PENALISED, 256)
        run.model.load_state_dict(state[name]["model"])
        matrices = weights(run.model)
        alive = sum(int((matrix != 0).any(1).sum()) for matrix in matrices.values())
        entries = sum(
            parameter.numel() for n, parameter in run.model.named_parameters() if "blocks" in n
        ) - sum(p.numel() for n, p in run.model.named_parameters() if "norm" in n and "blocks" in n)
        nonzero = sum(int((matrix != 0).sum()) for matrix in matrices.values())
        last = rows[name, 30]
        assert last["groups"] == sum(len(matrix) for matrix in matrices.values()) == 2 * 288
        assert last["kept_groups"] == alive
        assert 0.25 * 576 <= alive < 0.8 * 576
        assert last["density"] == pytest.approx(nonzero / entries)


def test_the_summary_counts_what_is_left(tmp_path: Path) -> None:
    config = replace(PENALISED, steps=20, runs=("dense",))
    (summary,) = train(config, tmp_path, console=QUIET).summaries
    assert summary.kept is not None
    (row,) = [row for row in read_metrics(tmp_path / METRICS) if row["step"] == 20]
    assert (summary.kept.kept_groups, summary.kept.groups) == (row["kept_groups"], row["groups"])
    model = Run("dense", config, 256).model
    model.load_state_dict(load_checkpoint(tmp_path / CHECKPOINT)["runs"]["dense"]["model"])
    nonzero = sum(int((parameter != 0).sum()) for parameter in model.parameters())
    assert summary.density == nonzero / dense_parameters(model.config) < 0.9


@pytest.mark.parametrize("step", [1, 17])
def test_resuming_equals_no_interruption_bit_for_bit(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, "dense")
        assert train(PENALISED, tmp_path, console=QUIET).step == step
    config = resumed_config(tmp_path, penalty="wgsef", k="25%")
    assert config == PENALISED
    train(config, tmp_path, resume=True, console=QUIET)
    assert fingerprint(tmp_path) == fingerprint(finished)


def test_without_strength_the_losses_are_those_of_no_penalty(tmp_path: Path) -> None:
    config = replace(TINY, runs=("dense", "2:4:v4"))
    train(config, tmp_path / "plain", console=QUIET)
    train(replace(config, penalty=PenaltyOptions("l1", lam=0.0)), tmp_path / "zero", console=QUIET)
    for one, other in zip(
        *(read_metrics(tmp_path / name / METRICS) for name in ("plain", "zero")), strict=True
    ):
        assert (one["loss"], one["val_loss"]) == (other["loss"], other["val_loss"])


@pytest.mark.parametrize("penalty", [
    PenaltyOptions("l1", lam=1e-3), PenaltyOptions("lp", lam=1e-4, p=0.5),
    PenaltyOptions("l1", lam=3e-3, groups="block(4, 4)"),
], ids=str)  # fmt: skip
def test_other_penalties_zero_entries(tmp_path: Path, penalty: PenaltyOptions) -> None:
    config = replace(TINY, runs=("dense", "75%"), steps=20, lr=3e-3, penalty=penalty)
    if penalty.groups is not None:
        config = replace(config, runs=("dense",))
    train(config, tmp_path, console=QUIET)
    last = [row for row in read_metrics(tmp_path / METRICS) if row["step"] == 20]
    assert all(row["kept_groups"] < row["groups"] for row in last)
    assert all(0.02 < row["density"] < 0.98 for row in last)


# ---- options -------------------------------------------------------------------------------------
def test_options_make_the_penalty() -> None:
    options = PenaltyOptions("WGSEF", lam=0.1, k="64")
    penalty = options.penalty(500)
    assert isinstance(penalty, WGSEF)
    assert (penalty.k, penalty.groups) == (64, "neuron")
    assert [penalty.at(step).lam for step in (0, 50, 100, 150, 499)] == [0.0, 0.0, 0.05, 0.1, 0.1]
    penalty = PenaltyOptions("lp", lam=0.1, p=0.5).penalty(500)
    assert isinstance(penalty, Lp)
    assert (penalty.p, penalty.groups) == (0.5, "element")
    assert replace(options, groups="input").penalty(500).groups == "input"
    assert TrainConfig().penalty is None
    config = TrainConfig.from_options(penalty="lp", lam=0.1, p=0.5, penalty_groups="input")
    assert config.penalty == PenaltyOptions("lp", 0.1, p=0.5, groups="input")
    assert TrainConfig.from_options(**config.options()) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": "ridge", "lam": 1.0}, "choose one of l1"),
        ({"penalty": "wgsef", "lam": 1.0}, "needs k"),
        ({"penalty": "wgsef", "k": "25%"}, "needs lam"),
        ({"penalty": "l1", "lam": 1.0, "k": "25%"}, "does not take k"),
        ({"penalty": "l1", "lam": -1.0}, "lam=-1"),
        ({"penalty": "lp", "lam": 1.0, "p": 2.0}, "p=2"),
        ({"penalty": "wgsef", "lam": 1.0, "k": "many"}, "many"),
        ({"penalty": "l1", "lam": 1.0, "penalty_groups": "rows"}, "choose one of"),
        ({"lam": 1.0}, "lam=1.0 without a penalty"),
        ({"k": "25%"}, "without a penalty"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises((PenaltyError, DTypeError), match=message):
        TINY.with_options(**options)


def test_groups_that_do_not_fit_name_the_parameter(tmp_path: Path) -> None:
    config = replace(
        TINY, runs=("dense",), penalty=PenaltyOptions("l1", lam=1.0, groups="block(7, 7)")
    )
    with pytest.raises(
        GossamerError, match=r"parameter blocks\.0\.attention\.qkv\.weight: .*block"
    ):
        train(config, tmp_path / "out", console=QUIET)
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_is_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gossamer.train import GPT

    monkeypatch.setattr(GPT, "forward", lambda self, x, y: self.tokens.weight.sum() * math.inf)
    with pytest.raises(GossamerError, match="at step 1; training has diverged: lower --lr"):
        train(PENALISED, tmp_path, console=QUIET)


def test_torch_alone_trains_without_a_penalty() -> None:
    assert type(Run("dense", TINY, 256).optimizer) is torch.optim.AdamW
