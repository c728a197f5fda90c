import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gossamer.errors import CheckpointError
from gossamer.train import Run, load_checkpoint, read_metrics, train
from gossamer.train.checkpoint import CHECKPOINT
from gossamer.train.folder import LOCK
from gossamer.train.metrics import METRICS
from gossamer.train.resume import resumed_config
from support.training import QUIET, TEXT, TINY, Step, fingerprint, interrupt_at

pytestmark = [pytest.mark.slow, pytest.mark.process]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    assert not train(TINY, out, console=QUIET).interrupted
    return out


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
        interrupt_at(patch, step, "2:4:v4", number)
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
        interrupt_at(patch, 3, "2:4:v4")
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
    (tmp_path / LOCK).unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
