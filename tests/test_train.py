import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from rich.console import Console
from torch import Tensor, nn

from gossamer.errors import (
    CheckpointError,
    DataError,
    DTypeError,
    GossamerError,
    PatternError,
    ShapeError,
)
from gossamer.train import GPT, GPTConfig, Run, TrainConfig, load_checkpoint, read_metrics, train
from gossamer.train.compare import CHECKPOINT, METRICS, PICTURE, resumed_config
from gossamer.train.loop import dense_parameters, learning_rate
from gossamer.train.model import parameter_groups
from gossamer.train.plot import COLOURS, plot

TEXT = str(Path(argparse.__file__))
QUIET = Console(quiet=True)
TINY = TrainConfig(
    runs=("dense", "2:4:v4", "75%"), steps=12, batch=4, context=16, width=32, depth=2, heads=2,
    threads=1, data=TEXT, eval_every=5, checkpoint_every=0,
)  # fmt: skip
Step = Callable[[Run, Tensor, Tensor], float]


def fingerprint(out: Path) -> Any:
    """All that a training computed, without the times it took."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.dtype, value.shape, value.reshape(-1).view(torch.uint8).numpy().tobytes()
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if key != "step_seconds"}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    state = load_checkpoint(out / CHECKPOINT)
    del state["config"]["checkpoint_every"]
    times = ("seconds", "tokens_per_second")
    rows = [
        {key: value for key, value in row.items() if key not in times}
        for row in read_metrics(out / METRICS)
    ]
    return plain(state), rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    assert not train(TINY, out, console=QUIET).interrupted
    return out


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    take: Step = Run.step

    def interrupted(run: Run, inputs: Tensor, targets: Tensor) -> float:
        if len(run.step_seconds) + 1 == step and run.name == "2:4:v4":
            signal.raise_signal(number)
        return take(run, inputs, targets)

    monkeypatch.setattr(Run, "step", interrupted)


# ---- model ---------------------------------------------------------------------------------------
SIZES = GPTConfig(vocabulary=11, context=8, width=16, depth=2, heads=2)


def test_no_position_sees_a_later_one() -> None:
    model = GPT(SIZES).double()
    tokens = torch.randint(11, (3, 8))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-12)
    assert (before[:, 5:] - after[:, 5:]).abs().amax(-1).min() > 1e-6


def test_the_head_is_the_token_embedding() -> None:
    model = GPT(SIZES)
    model(torch.randint(11, (1, 8))).sum().backward()
    assert not [name for name, _ in model.named_parameters() if "head" in name]
    assert model.tokens.weight.grad is not None
    assert (model.tokens.weight.grad.abs().sum(1) > 0).all()  # of tokens not in the input, too


def test_parameters_decay_by_kind_and_not_by_rank() -> None:
    model = GPT(SIZES)
    model.blocks[0].mlp.up = nn.Linear(16, 64)  # with a bias
    model.extra = nn.Module()
    model.extra.values = nn.Parameter(torch.ones(3))
    decaying, rest = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = [id(p) for group in (decaying, rest) for p in group["params"]]  # type: ignore[attr-defined]
    assert sorted(listed) == sorted(names)
    exempt = {names[id(p)] for p in rest["params"]}  # type: ignore[attr-defined]
    assert exempt == {
        name for name in names.values() if "norm" in name or name.endswith("bias")
    } | {"tokens.weight", "positions.weight"}
    assert (decaying["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 15}, "width=15 with heads=2; .* choose 14"),
        ({"depth": 0}, "depth=0; it must be at least 1"),
        ({"context": -1}, "context=-1"),
    ],
)
def test_model_sizes_are_checked(change: dict[str, int], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        replace(SIZES, **change)


def test_too_long_an_input_is_an_error() -> None:
    with pytest.raises(ShapeError, match=r"\[2, 9\].* at most 8"):
        GPT(SIZES)(torch.zeros(2, 9, dtype=torch.long))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"steps": 0}, ShapeError, "steps=0"),
        ({"seed": -1}, ShapeError, "seed=-1; it must be at least 0"),
        ({"threads": 0}, ShapeError, "threads=0"),
        ({"lr": math.nan}, ShapeError, "lr=nan"),
        ({"lr": 0.0}, ShapeError, "lr=0.0"),
        ({"dtype": "float16"}, DTypeError, "'float16'; choose one of .'bfloat16', 'float32'"),
        ({"level": "word"}, DataError, "choose byte or char"),
        ({"runs": ()}, PatternError, "each must be named once"),
        ({"runs": ("2:4", "2 : 4")}, PatternError, "each must be named once"),
        ({"runs": ("dense", "3:2")}, PatternError, "n=3, m=2"),
        ({"runs": ("sparse",)}, PatternError, '"90%".* or "dense"'),
    ],
)
def test_options_are_checked(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        replace(TINY, **change)


def test_the_learning_rate_warms_up_and_falls() -> None:
    for steps in (1, 2, 9, 300):
        factors = [learning_rate(step, steps) for step in range(steps)]
        top = factors.index(max(factors))
        assert max(factors) == 1.0
        assert factors[: top + 1] == sorted(factors[: top + 1])
        assert factors[top:] == sorted(factors[top:], reverse=True)
        assert min(factors) > 0


# ---- training ------------------------------------------------------------------------------------
def test_the_loss_goes_down_on_real_text(tmp_path: Path) -> None:
    config = replace(TINY, steps=60, batch=16, context=32, lr=3e-3, eval_every=60)
    result = train(config, tmp_path, console=QUIET)
    for summary in result.summaries:
        assert summary.val_loss is not None
        assert summary.val_loss < math.log(256) - 2, summary


def test_a_run_writes_metrics_checkpoint_and_picture(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {METRICS, CHECKPOINT, PICTURE}
    rows = read_metrics(finished / METRICS)
    assert [(row["step"], row["run"]) for row in rows] == [
        (step, run) for step in range(1, 13) for run in TINY.runs
    ]
    evaluated = {row["step"] for row in rows if row["val_loss"] is not None}
    assert evaluated == {5, 10, 12}
    for run in TINY.runs:
        mine = [row for row in rows if row["run"] == run]
        seconds = [0.0, *(row["seconds"] for row in mine)]
        for row, before, after in zip(mine, seconds, seconds[1:], strict=False):
            assert row["tokens_per_second"] == pytest.approx(64 / (after - before), rel=1e-6)
            assert row["lr"] == pytest.approx(1e-3 * learning_rate(row["step"] - 1, 12))


def test_runs_in_company_compute_what_they_compute_alone(tmp_path: Path, finished: Path) -> None:
    together = [row["loss"] for row in read_metrics(finished / METRICS) if row["run"] == "75%"]
    train(replace(TINY, runs=("75%",)), tmp_path, console=QUIET)
    assert [row["loss"] for row in read_metrics(tmp_path / METRICS)] == together


def test_runs_take_turns_on_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take: Step = Run.step
    taken: list[tuple[str, int]] = []

    def recorded(run: Run, inputs: Tensor, targets: Tensor) -> float:
        taken.append((run.name, hash(inputs.numpy().tobytes())))
        return take(run, inputs, targets)

    monkeypatch.setattr(Run, "step", recorded)
    train(TINY, tmp_path, console=QUIET)
    rounds = [taken[i : i + 3] for i in range(0, 36, 3)]
    assert all({name for name, _ in turn} == set(TINY.runs) for turn in rounds)
    assert all(len({batch for _, batch in turn}) == 1 for turn in rounds)
    assert len({turn[0][1] for turn in rounds}) == 12
    assert {turn[0][0] for turn in rounds[:3]} == set(TINY.runs)


def test_the_summary_counts_state_density_and_speed(tmp_path: Path) -> None:
    result = train(TINY, tmp_path, console=QUIET)
    dense, half, quarter = result.summaries
    sizes = GPTConfig(256, 16, 32, 2, 2)
    weights = 2 * 12 * 32 * 32
    assert dense.density == 1.0
    assert dense.state_bytes == pytest.approx(16 * dense_parameters(sizes), rel=0.01)
    for summary, share in ((half, 0.5), (quarter, 0.25)):
        expected = 1 - weights * (1 - share) / dense_parameters(sizes)
        assert summary.density == pytest.approx(expected)
        assert summary.state_bytes > expected * dense.state_bytes  # structure counts as well
        assert summary.speedup == dense.step_seconds / summary.step_seconds
        assert summary.tokens_per_second == 64 / summary.step_seconds
    rows = [row for row in read_metrics(tmp_path / METRICS) if row["run"] == "dense"]
    steps = sorted(64 / row["tokens_per_second"] for row in rows)
    assert dense.step_seconds == pytest.approx((steps[5] + steps[6]) / 2)
    alone = train(replace(TINY, runs=("75%",), steps=1), tmp_path, overwrite=True, console=QUIET)
    assert alone.summaries[0].speedup is None


def test_excluded_layers_stay_dense() -> None:
    config = replace(TINY, exclude=("*.attention.*",))
    model = Run("2:4:v4", config, 256).model
    dense = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    assert dense == {f"blocks.{i}.attention.{name}" for i in (0, 1) for name in ("qkv", "out")}


def test_a_width_that_does_not_fit_the_pattern_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(PatternError):
        train(replace(TINY, runs=("1:64",)), tmp_path / "out", console=QUIET)
    assert not (tmp_path / "out").exists()


def test_bfloat16_trains(tmp_path: Path) -> None:
    train(replace(TINY, dtype="bfloat16"), tmp_path, console=QUIET)
    rows = read_metrics(tmp_path / METRICS)
    assert all(rows[i]["loss"] > rows[i + 33]["loss"] for i in range(3))


def test_characters_train(tmp_path: Path) -> None:
    result = train(replace(TINY, level="char", runs=("75%",)), tmp_path, console=QUIET)
    assert result.step == 12


def test_a_loss_that_is_not_finite_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GPT, "loss", lambda self, x, y: self.tokens.weight.sum() * math.inf)
    with pytest.raises(GossamerError, match="at step 1; training has diverged: lower --lr"):
        train(TINY, tmp_path, console=QUIET)


# ---- interruption --------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 5, 11])
def test_resuming_equals_no_interruption_bit_for_bit(
    tmp_path: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    number: signal.Signals,
) -> None:
    handlers = [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, number)
        result = train(TINY, tmp_path, console=QUIET)
    assert (result.interrupted, result.step) == (True, step)
    assert [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)] == handlers
    torch.manual_seed(999)
    result = train(resumed_config(tmp_path), tmp_path, resume=True, console=QUIET)
    assert (result.interrupted, result.step) == (False, 12)
    assert fingerprint(tmp_path) == fingerprint(finished)


def test_the_random_state_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws: list[float] = []
    take: Step = Run.step

    def drawing(run: Run, inputs: Tensor, targets: Tensor) -> float:
        draws.append(torch.rand(()).item())
        return take(run, inputs, targets)

    monkeypatch.setattr(Run, "step", drawing)
    config = replace(TINY, runs=("2:4:v4",), steps=6)
    train(config, tmp_path / "a", console=QUIET)
    whole, draws[:] = draws[:], []
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, signal.SIGINT)
        train(config, tmp_path / "b", console=QUIET)
    torch.manual_seed(5)
    train(config, tmp_path / "b", resume=True, console=QUIET)
    assert draws == whole


def test_a_finished_run_resumes_to_itself(tmp_path: Path, finished: Path) -> None:
    for name in (CHECKPOINT, METRICS):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    result = train(resumed_config(tmp_path), tmp_path, resume=True, console=QUIET)
    assert not result.interrupted
    for name in (CHECKPOINT, METRICS):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gossamer.cli", "train", "--out", str(out), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ)
    )


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    """Wait until a step's rows are in the metrics file."""
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        lines = (out / METRICS).read_text().splitlines() if (out / METRICS).exists() else []
        if len(lines) > 1 and json.loads(lines[-2])["step"] >= step:
            return
        time.sleep(0.002)
    pytest.fail(f"no step {step}: {process.communicate(timeout=10)[0]}")


LONG = (
    "--compare", "dense,2:4:v4", "--steps", "150", "--batch", "4", "--context", "16", "--width",
    "32", "--depth", "1", "--heads", "2", "--threads", "1", "--data", TEXT, "--eval-every", "50",
)  # fmt: skip


def test_killed_at_any_moment_the_last_checkpoint_resumes_bit_for_bit(tmp_path: Path) -> None:
    moments = random.Random(time.time_ns())
    out = tmp_path / "killed"
    step, options = 0, (*LONG, "--checkpoint-every", "1")
    for _ in range(2):
        step += moments.randrange(5, 45)
        process = start(out, *options)
        wait_for_step(process, out, step)
        process.kill()
        process.communicate()
        step = load_checkpoint(out / CHECKPOINT)["step"]
        options = ("--resume",)
    config = resumed_config(out, checkpoint_every=0)
    assert train(config, out, resume=True, console=QUIET).step == 150
    train(config, tmp_path / "whole", console=QUIET)
    assert fingerprint(out) == fingerprint(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_with_a_checkpoint_and_130(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = start(tmp_path, *LONG, "--steps", "100000", "--checkpoint-every", "0")
    wait_for_step(process, tmp_path, 5)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert f"gossamer train --resume --out {tmp_path}" in output
    last = read_metrics(tmp_path / METRICS)[-1]["step"]
    assert load_checkpoint(tmp_path / CHECKPOINT)["step"] == last >= 5


# ---- what cannot be resumed ----------------------------------------------------------------------
def test_an_earlier_run_is_neither_lost_nor_mixed_up(tmp_path: Path, finished: Path) -> None:
    for name in (CHECKPOINT, METRICS):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    before = fingerprint(tmp_path)
    with pytest.raises(CheckpointError, match="holds the checkpoint of another training"):
        train(TINY, tmp_path, console=QUIET)
    with pytest.raises(CheckpointError, match="trained with width=32, asked is 64"):
        resumed_config(tmp_path, width=64)
    with pytest.raises(CheckpointError, match="trained with other options"):
        train(replace(TINY, steps=13), tmp_path, resume=True, console=QUIET)
    assert resumed_config(tmp_path, width=32, runs=("dense", " 2:4:v4", "75%")) == TINY
    assert resumed_config(tmp_path, threads=2, checkpoint_every=3).threads == 2
    assert fingerprint(tmp_path) == before
    train(replace(TINY, steps=1), tmp_path, overwrite=True, console=QUIET)
    assert len(read_metrics(tmp_path / METRICS)) == 3


def test_another_text_is_not_resumed(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("what is written here " * 50)
    config = replace(TINY, data=str(text), runs=("dense",), steps=1)
    train(config, tmp_path / "out", console=QUIET)
    before = fingerprint(tmp_path / "out")
    text.write_text("what is written Here " * 50)
    with pytest.raises(CheckpointError, match="trained on another text"):
        train(config, tmp_path / "out", resume=True, console=QUIET)
    assert fingerprint(tmp_path / "out") == before


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "metrics"])
def test_a_damaged_run_is_refused_and_left_as_it_is(
    tmp_path: Path, finished: Path, damage: str
) -> None:
    for name in (CHECKPOINT, METRICS):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    file = tmp_path / (METRICS if damage == "metrics" else CHECKPOINT)
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[:-100])
    elif damage == "flipped":
        content[-5000] ^= 4
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:50] + content[60:])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError):
        train(TINY, tmp_path, resume=True, console=QUIET)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---- picture -------------------------------------------------------------------------------------
def test_the_picture_has_a_curve_for_each_run(tmp_path: Path) -> None:
    rows = [
        {"run": run, "step": step, "loss": 5 - slope * step, "seconds": slope * step,
         "val_loss": 5.1 - slope * step if step % 5 == 0 else None}
        for step in range(1, 21) for run, slope in (("dense", 0.1), ("2:4", 0.15), ("90%", 0.2))
    ]  # fmt: skip
    plot(rows, tmp_path / "loss.png", "title")
    picture = torch.from_numpy(imread(tmp_path / "loss.png")[..., :3].copy())
    middle = picture.shape[1] // 2
    for half in (picture[:, :middle], picture[:, middle:]):
        for colour in COLOURS[:3]:
            near = (half - torch.tensor(to_rgb(colour))).abs().amax(-1) < 0.02
            assert near.sum() > 200, colour
    plot(rows[:3], tmp_path / "short.png")
    assert (tmp_path / "short.png").stat().st_size > 1000
