"""What a training says and draws: odd names, odd terminals, odd numbers."""

import io
import math
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from rich.console import Console

from gossamer.errors import ArgumentError, DataError
from gossamer.train import Summary, load_corpus, plot, train
from gossamer.train.checkpoint import CHECKPOINT
from gossamer.train.output import Output
from gossamer.train.report import Reporter, summary_table
from gossamer.train.size import check_memory, check_threads
from support.training import QUIET, TEXT, TINY

ODD = ["[/b]", "[bold]", "a\\[b", "[red]x[/red]", "$x_$", "$$", "%s{}", "\udcff", "ä", ":smile:"]
ROW = {"run": "dense", "step": 1, "loss": 3.0, "val_loss": 3.1, "seconds": 1.0,
       "tokens_per_second": 1.0, "lr": 1.0}  # fmt: skip


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_text_is_said_as_it_is(text: str, encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="replace")
    output = Output(Console(file=stream, force_terminal=True, color_system="truecolor", width=200))
    output.say(text)
    with Reporter(output, 5) as reporter:
        reporter.step(1, {text: 2.0})
        reporter.evaluated(1, {text: 1.0})
    output.say(summary_table([Summary(text, 0.1, 1.0, 1.0, 8, 0.5, None)]))
    stream.flush()
    assert output.error is None
    said = raw.getvalue().decode(encoding)
    shown = text.encode("utf-8", "replace").decode().encode(encoding, "replace").decode(encoding)
    assert said.splitlines()[0].strip() == shown
    assert said.count(shown) >= 3


@pytest.mark.parametrize("title", ODD)
def test_a_title_is_plain_text(tmp_path: Path, title: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a font may lack a letter
        plot([ROW], tmp_path / "a.png", title)
    assert imread(tmp_path / "a.png").ndim == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["loss", "val_loss", "both", "everywhere"])
def test_numbers_that_are_none_leave_gaps(tmp_path: Path, bad: float, place: str) -> None:
    names = ("loss", "val_loss") if place in ("both", "everywhere") else (place,)
    rows: list[dict[str, Any]] = [ROW | {"step": step, "seconds": float(step)} for step in range(4)]
    for row in rows if place == "everywhere" else rows[1:2]:
        row |= dict.fromkeys(names, bad)
    plot(rows, tmp_path / "a.png")
    assert imread(tmp_path / "a.png").ndim == 3


class Refusing(io.StringIO):
    """A file that cannot be written, as standard output may be."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        BrokenPipeError(32, "Broken pipe"),
        UnicodeEncodeError("ascii", "–", 0, 1, "ordinal not in range"),
        ValueError("I/O operation on closed file"),
    ],
)
def test_output_that_fails_never_ends_the_work(tmp_path: Path, error: Exception) -> None:
    config = replace(TINY, runs=("75%",), steps=2, eval_every=1)
    console = Console(file=Refusing(error))
    before = os.dup(1)
    try:
        result = train(config, tmp_path, console=console)
    finally:
        os.dup2(before, 1)  # rich points it elsewhere at a broken pipe
    assert (result.step, len(result.summaries)) == (2, 1)
    assert result.output_error
    assert (tmp_path / CHECKPOINT).exists()


# ---- bounds --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2**63}, {"seed": 2**64}, {"seed": 10**400}, {"steps": 2**31}, {"batch": 10**10},
        {"width": 10**12}, {"depth": 10**10}, {"checkpoint_every": 2**40}, {"threads": 2**31},
    ],
)  # fmt: skip
def test_sizes_have_bounds(change: dict[str, int]) -> None:
    (name,) = change
    with pytest.raises(ArgumentError, match=f"train got {name}=.*at most") as caught:
        replace(TINY, **change)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "change",
    [{"batch": 10**9}, {"context": 2**30}, {"width": 2**30, "heads": 2}, {"depth": 10**9},
     {"runs": ("dense+topk",), "experts": 10**9}],
)  # fmt: skip
def test_a_training_beyond_the_memory_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    config = replace(TINY, **change)
    with pytest.raises(ArgumentError, match=r"need more than .* GB; this machine has"):
        check_memory(config, 256)
    check_memory(replace(TINY, width=2048, depth=12, heads=8, context=256), 256)  # 0.6 G weights


def test_threads_have_a_bound_where_they_start(tmp_path: Path) -> None:
    check_threads(None)
    check_threads(16)
    with pytest.raises(ArgumentError, match="threads=100000; this machine has"):
        train(replace(TINY, threads=100_000), tmp_path / "out", console=QUIET)
    assert not (tmp_path / "out").exists()


def test_pipes_and_devices_are_no_text(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(DataError, match="a pipe or a device"):
            load_corpus(path)
    (tmp_path / "text").write_text("some words " * 20)
    assert load_corpus(tmp_path).fingerprint == load_corpus(tmp_path / "text").fingerprint
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match="does not exist"):
        load_corpus(tmp_path / "loop")


# ---- the command ---------------------------------------------------------------------------------
COMMAND = (
    "train", "--pattern", "75%", "--steps", "2", "--batch", "2", "--context", "8", "--width", "32",
    "--depth", "1", "--heads", "2", "--threads", "1", "--data", TEXT,
)  # fmt: skip


def gossamer(*arguments: str, stdout: Any = subprocess.PIPE, **variables: str) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "gossamer.cli", *arguments], stdout=stdout, stderr=subprocess.PIPE,
        env=os.environ | variables, check=False,
    )  # fmt: skip


@pytest.mark.process
@pytest.mark.slow
def test_a_terminal_that_knows_little_and_a_backend_that_nobody_knows(tmp_path: Path) -> None:
    out = os.fsdecode(os.fsencode(tmp_path) + b"/[/b]$\xff")
    done = gossamer(*COMMAND, "--out", out, PYTHONIOENCODING="ascii", MPLBACKEND="odd")
    assert done.returncode == 0, done.stderr.decode()
    assert not done.stderr
    assert b"[/b]$" in done.stdout
    assert b"warning" not in done.stdout
    assert (Path(out) / "loss.png").exists()


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_standard_output_is_one_line_after_the_work(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = gossamer(*COMMAND, "--out", str(tmp_path / "out"), stdout=full)
        assert done.returncode == 1
        assert done.stderr.decode() == (
            "error: standard output cannot be written: No space left on device\n"
        )
        assert (tmp_path / "out" / CHECKPOINT).exists()
        for command in (("--help",), ("info",)):
            done = gossamer(*command, stdout=full)
            assert (done.returncode, done.stderr.count(b"\n")) == (1, 1), done.stderr.decode()
