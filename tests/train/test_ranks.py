"""`gossamer train` on several processes: equal to one that accumulates, also through a kill."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from gossamer.train import read_metrics, train
from support import ranks
from support.ranks_course import bits
from support.ranks_train import accumulated, config, dying, of_checkpoint, resumed, trainings

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("text")
    squares = "".join(f"{i * i} is the square of {i}.\n" for i in range(900))
    (folder / "text.txt").write_text(squares)
    (folder / "other.txt").write_text("No numbers are in this text.\n" * 900)
    return str(folder / "text.txt")


@pytest.fixture(scope="module")
def trained(data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("runs")
    return folder, ranks.run(2, trainings, data, str(folder))


def test_two_ranks_are_bit_equal_to_one_that_accumulates(
    data: str, trained: tuple[Path, list[dict]]
) -> None:
    folder, found = trained
    assert [one["rigl"] for one in found] == [(9, 1), (9, 0)]  # one process writes and speaks
    state = of_checkpoint(folder / "rigl", "rigl@2:4:v4")
    assert bits(state) == bits(accumulated(config(data), ranks=2))
    rows = read_metrics(folder / "rigl/metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 10))


def test_adapters_that_come_late_are_averaged(data: str, trained: tuple[Path, list[dict]]) -> None:
    state = of_checkpoint(trained[0] / "slope", "slope@2:4")
    expected = accumulated(config(data, "slope@2:4"), ranks=2)
    assert state.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(state[key], tensor, msg=key)


def test_a_kill_and_a_resume_change_nothing(data: str, tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    ranks.run(2, dying, data, str(two), killed=True)
    shutil.copytree(two, one)
    assert ranks.run(2, resumed, data, str(two)) == [9, 9]
    state = of_checkpoint(two, "rigl@2:4:v4")
    assert bits(state) == bits(accumulated(config(data), ranks=2))

    # One process takes the whole batch at once: equal to rounding.
    result = train(config(data), one, resume=True, console=Console(quiet=True))
    assert result.step == 9
    for name, tensor in of_checkpoint(one, "rigl@2:4:v4").items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-3, atol=1e-4, msg=name)


def test_what_several_processes_cannot_do_is_refused_by_all(
    trained: tuple[Path, list[dict]],
) -> None:
    for one in trained[1]:
        assert one["batch"].startswith("ArgumentError: train got batch=3 for 2 processes")
        assert "choose --batch 2" in one["batch"]
        assert one["again"].startswith("CheckpointError:")
        assert one["text"].startswith("DataError: the processes read different texts")


@pytest.mark.slow
def test_torchrun_starts_it(data: str, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "gossamer", "train", "--steps", "3", "--width", "32", "--depth", "1", "--heads", "2",
        "--context", "16", "--batch", "4", "--data", data, "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tokens/s") <= 1
    assert done.stdout.count("checkpoint.safetensors") == 1
    assert of_checkpoint(tmp_path / "out", "2:4:v4")
