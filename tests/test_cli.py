import argparse
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import gossamer
from gossamer.cli import main
from gossamer.commands import app
from gossamer.train import read_metrics

TEXT = str(Path(argparse.__file__))
SMALL = (
    "train", "--steps", "3", "--batch", "2", "--context", "8", "--width", "32", "--depth", "1",
    "--heads", "2", "--threads", "1", "--data", TEXT,
)  # fmt: skip


@pytest.mark.parametrize("command", [(), ("info",), ("train",)])
def test_help_is_there(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_info_tells_what_runs_here() -> None:
    result = CliRunner().invoke(app, ["info"])
    assert result.exit_code == 0, result.output
    assert gossamer.__version__ in result.output
    for word in ("isa", "threads", "cuda", "spmm_t", "sddmm", "float32", "bfloat16"):
        assert word in result.output


def test_train_prints_the_table_and_writes_the_files(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = CliRunner().invoke(
        app, [*SMALL, "--compare", "dense, 2:4:v4,75%", "--exclude", "*.qkv", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    for word in ("dense", "2:4:v4", "75%", "speed-up", "tokens/s", "val. loss", "1.00×"):
        assert word in result.output
    assert "step 3/3   validation loss: dense" in result.output
    assert len(read_metrics(out / "metrics.jsonl")) == 9
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    again = CliRunner().invoke(app, ["train", "--resume", "--out", str(out)])
    assert again.exit_code == 0, again.output
    assert len(read_metrics(out / "metrics.jsonl")) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "/no/such/text"), "error: /no/such/text does not exist"),
        (("--pattern", "2:4:v5"), "vector"),
        (("--pattern", "sparse"), '"dense" for the dense network'),
        (("--width", "30"), "in_features must be a multiple of 4"),
        (("--lr", "-1"), "error: train got lr=-1.0"),
        (("--dtype", "float16"), "error: train got dtype='float16'"),
        (("--resume",), "error: checkpoint"),
    ],
)
def test_a_mistake_gives_a_clear_error_and_writes_nothing(
    tmp_path: Path,
    options: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = ["gossamer", *SMALL, "--pattern", "2:4", *options, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    check_mistake(capsys.readouterr().err, message)
    assert not out.exists()


def check_mistake(said: str, message: str) -> None:
    assert message in said
    assert said.startswith("error: ")
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.process
def test_a_mistake_ends_the_process_with_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.run(
        [sys.executable, "-m", "gossamer.cli", *SMALL, "--pattern", "sparse", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1, process
    check_mistake(process.stderr, '"dense" for the dense network')
    assert not out.exists()


@pytest.mark.parametrize(
    "options", [("--pattern", "2:4", "--compare", "dense,2:4"), ("--resume", "--overwrite")]
)
def test_options_that_exclude_each_other(tmp_path: Path, options: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["train", "--out", str(tmp_path / "out"), *options])
    assert result.exit_code == 2
    assert "not both" in result.output
    assert not (tmp_path / "out").exists()


def hidden(*arguments: str, names: tuple[str, ...] = ("typer", "rich", "matplotlib")) -> Any:
    """`gossamer` in a process that cannot import some packages."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({names!r})); "
        f"sys.argv = ['gossamer', *{arguments!r}]; from gossamer.cli import main; main()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.process
def test_info_works_without_the_cli_extra() -> None:
    done = hidden("info")
    assert done.returncode == 0, done.stderr
    assert done.stdout == CliRunner().invoke(app, ["info"]).output


@pytest.mark.process
@pytest.mark.parametrize("command", [("train", "--demo"), ("--help",), (), ("info", "--help")])
def test_every_other_command_names_the_cli_extra(command: tuple[str, ...]) -> None:
    done = hidden(*command, names=("rich",))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("needs rich: pip install 'gossamer[cli]'\n")
    assert not done.stdout


@pytest.mark.process
def test_the_library_works_without_the_cli_extra() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys("
        "('typer', 'rich', 'matplotlib', 'threadpoolctl', 'scipy'))); import torch, gossamer; "
        "model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), "
        "torch.nn.Linear(64, 8)); gossamer.sparsify(model, '2:4'); print(gossamer.summary(model)); "
        "[getattr(gossamer, name) for name in gossamer.__all__ if name != 'train']"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "of dense" in done.stdout


@pytest.mark.parametrize("package", ["rich", "matplotlib"])
def test_train_names_the_cli_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == package:
            monkeypatch.setitem(sys.modules, name, None)
        elif name.startswith(("gossamer.train", "gossamer.agg")):
            monkeypatch.delitem(sys.modules, name)  # imported anew; put back afterwards
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError) as raised:
        import_module("gossamer.train")
    said = str(raised.value)
    assert said.startswith("gossamer.train needs the package " + package)
    assert "pip install 'gossamer[cli]'" in said
