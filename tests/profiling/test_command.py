"""`gossamer profile module:function`."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from gossamer import ArgumentError
from gossamer.commands import app
from gossamer.profiling.command import load

MODEL = """
import torch
import beside

def make():
    return torch.nn.Linear(16, 16), torch.randn(beside.ROWS, 16)

def wrong():
    return torch.nn.Linear(16, 16)

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models_of_mine.py").write_text(MODEL)
    (tmp_path / "beside.py").write_text("ROWS = 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("models_of_mine", "beside"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize("where", ["models_of_mine", "models_of_mine.py"])
def test_table_and_picture(folder: Path, where: str) -> None:
    command = [
        "profile",
        f"{where}:make",
        "--pattern",
        "2:4",
        "--rounds",
        "1",
        "--picture",
        "p.png",
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "16x16" in result.output
    assert "2:4" in result.output
    assert (folder / "p.png").exists()


def test_forward_only_and_bfloat16(folder: Path) -> None:
    command = ["profile", "models_of_mine:make", "--rounds", "1", "--forward-only"]
    result = CliRunner().invoke(app, [*command, "--dtype", "bfloat16", "--threads", "1"])
    assert result.exit_code == 0, result.output
    assert "forward, 1 thread" in result.output
    assert "bfloat16" in result.output


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("models_of_mine", "module:function"),
        (":make", "module:function"),
        ("nowhere_at_all:make", "no module 'nowhere_at_all'"),
        ("nowhere.py:make", "no file nowhere.py"),
        ("models_of_mine:none", "no function 'none'"),
        ("models_of_mine:number", "no function 'number'"),
        ("models_of_mine:wrong", "must return \\(model, example\\)"),
    ],
)
def test_what_cannot_be_found_is_told(folder: Path, target: str, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        load(target)


def test_a_missing_module_of_the_file_is_its_own_error(folder: Path) -> None:
    (folder / "needs.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ModuleNotFoundError, match="nothing_of_that_name"):
        load("needs:make")


def test_a_picture_that_cannot_be_written_comes_after_the_table(folder: Path) -> None:
    command = ["profile", "models_of_mine:make", "--rounds", "1", "--picture", "no/p.png"]
    result = CliRunner().invoke(app, command)
    assert "16x16" in result.output
    assert isinstance(result.exception, ArgumentError)
    assert "no/p.png cannot be written" in str(result.exception)


def test_load_returns_the_model_and_the_example(folder: Path) -> None:
    model, example = load("models_of_mine:make")
    assert isinstance(model, nn.Linear)
    assert isinstance(example, torch.Tensor)
