"""The folder of a training: held by one, swept, and its metrics checked."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gossamer.errors import CheckpointError, DataError, GossamerError
from gossamer.io.files import write_atomically
from gossamer.train import Run, load_checkpoint, load_corpus, read_metrics, train
from gossamer.train.checkpoint import CHECKPOINT
from gossamer.train.folder import FILES, LOCK, held, written_by_trainings
from gossamer.train.metrics import METRICS, rows_until
from gossamer.train.plot import PICTURE
from support.training import QUIET, TINY

SHORT = replace(TINY, runs=("dense", "75%"), steps=3, eval_every=2)


# ---- one training at a time ----------------------------------------------------------------------
def test_a_second_training_is_refused_whatever_it_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = []
    take = Run.step

    def step(run: Run, *batch: Any) -> float:
        monkeypatch.setattr(Run, "step", take)
        for how in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(CheckpointError, match="another training is writing into"):
                train(SHORT, tmp_path, console=QUIET, **how)
            refused.append(how)
        return take(run, *batch)

    monkeypatch.setattr(Run, "step", step)
    assert not train(SHORT, tmp_path, console=QUIET).interrupted
    assert len(refused) == 3
    assert len(read_metrics(tmp_path / METRICS)) == 6
    train(SHORT, tmp_path, console=QUIET, overwrite=True)  # it is free again


@pytest.mark.process
def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from filelock import FileLock; "
        f"lock = FileLock({str(tmp_path / LOCK)!r}); lock.acquire(); "
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match="another training"), held(tmp_path):
            pass
        process.kill()
        process.wait()
    with held(tmp_path):
        pass


def test_a_mistake_leaves_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with pytest.raises(DataError):
        train(replace(SHORT, data=str(tmp_path / "missing")), out, console=QUIET)
    assert not (tmp_path / "a").exists()
    out.mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(DataError):
        train(replace(SHORT, data=str(tmp_path / "missing")), out, console=QUIET)
    assert (out / "notes.txt").exists()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(GossamerError, match="cannot be written"):
        train(SHORT, file, console=QUIET)


def test_unfinished_files_have_names_of_their_own_and_are_swept(tmp_path: Path) -> None:
    seen = []

    def write(temporary: Path) -> None:
        seen.append(temporary.name)
        temporary.write_text("x")

    write_atomically(tmp_path / METRICS, write)
    assert str(os.getpid()) in seen[0]
    left = [tmp_path / f"{name}.4711.tmp" for name in FILES]
    for path in [*left, tmp_path / "mine.tmp"]:
        path.write_text("half")
    train(SHORT, tmp_path, console=QUIET, overwrite=True)
    assert not any(path.exists() for path in left)
    assert (tmp_path / "mine.tmp").exists()


# ---- a folder of results inside the text ---------------------------------------------------------
def test_results_inside_the_text_are_no_text(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("one.txt", "two.txt", "metrics.jsonl"):
        (data / name).write_text(f"what is written in {name} " * 300)
    before = load_corpus(data).fingerprint
    (tmp_path / "link").symlink_to(data)
    (data / "runs").mkdir()
    (data / "runs" / f"{METRICS}.4711.tmp").write_text("half a file")
    config = replace(SHORT, data=str(data), checkpoint_every=1)
    for out in (data / "runs", tmp_path / "link" / "other", data / "runs"):
        resume = (out / CHECKPOINT).exists()
        train(config, out, console=QUIET, resume=resume)
    texts = written_by_trainings(str(data), tmp_path / "out")
    assert load_corpus(data, leave_out=texts).fingerprint == before
    assert load_corpus(data).fingerprint != before
    assert written_by_trainings(None, tmp_path) == []


# ---- metrics -------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    train(SHORT, out, console=QUIET)
    return out


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[list[str]], list[str]]:
    def edit(lines: list[str]) -> list[str]:
        row = json.loads(lines[2])
        change(row)
        return [*lines[:2], json.dumps(row), *lines[3:]]

    return edit


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[:-1],
        lambda lines: [*lines[:2], *lines[3:]],
        lambda lines: [lines[0], *lines],
        lambda lines: lines[::-1],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [],
        lambda lines: [*lines[:2], "[]", *lines[3:]],
        lambda lines: [*lines[:2], "3", *lines[3:]],
        lambda lines: [*lines[:2], "\0" * 30, *lines[3:]],
        lambda lines: [*lines[:2], "[" * 100_000, *lines[3:]],
        edited(lambda row: row.pop("loss")),
        edited(lambda row: row.update(loss="low")),
        edited(lambda row: row.update(step="2")),
        edited(lambda row: row.update(step=True)),
        edited(lambda row: row.update(step=3)),
        edited(lambda row: row.update(run="90%")),
        edited(lambda row: row.update(seconds=None)),
        edited(lambda row: row.update(val_loss="low")),
    ],
)
def test_damaged_metrics_are_one_clear_error(
    tmp_path: Path, finished: Path, damage: Callable[[list[str]], list[str]]
) -> None:
    lines = (finished / METRICS).read_text().splitlines()
    (tmp_path / CHECKPOINT).write_bytes((finished / CHECKPOINT).read_bytes())
    (tmp_path / METRICS).write_text("".join(f"{line}\n" for line in damage(lines)))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"^metrics .*; the file ") as caught:
        train(SHORT, tmp_path, resume=True, console=QUIET)
    assert "\n" not in str(caught.value)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != LOCK}
    assert after == before


def test_what_follows_the_checkpoint_is_written_anew(tmp_path: Path, finished: Path) -> None:
    text = (finished / METRICS).read_text()
    (tmp_path / METRICS).write_text(text + '{"half')
    assert len(rows_until(tmp_path / METRICS, SHORT.turns(3))) == 6
    (tmp_path / METRICS).write_text(text + "garbage\n")
    assert len(rows_until(tmp_path / METRICS, SHORT.turns(2))) == 4
    last = read_metrics(finished / METRICS)[-2:]
    (tmp_path / METRICS).write_text("".join(f"{line}\n" for line in text.splitlines()[:4]))
    assert rows_until(tmp_path / METRICS, SHORT.turns(3), last)[-2:] == last


# ---- a full disk ---------------------------------------------------------------------------------
class Full:
    """Writes of a file fail from a step on, as on a full disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int, what: str) -> None:
        from gossamer.train import metrics

        take, sync = metrics.MetricsFile.append, metrics.MetricsFile.sync
        self.on = True

        def append(file: Any, rows: Any) -> None:
            if self.on and what == "rows" and rows[0]["step"] == step:
                room = os.open("/dev/full", os.O_WRONLY)
                real, size = file._file.fileno(), os.fstat(file._file.fileno()).st_size
                kept = os.dup(real)
                os.dup2(room, real)
                try:
                    take(file, rows)
                finally:
                    os.dup2(kept, real)
                    assert os.fstat(real).st_size == size
            else:
                take(file, rows)

        def synced(file: Any) -> None:
            if self.on and what == "sync" and file.unsafe and file.unsafe[-1]["step"] == step:
                raise OSError(28, "No space left on device")
            sync(file)

        monkeypatch.setattr(metrics.MetricsFile, "append", append)
        monkeypatch.setattr(metrics.MetricsFile, "sync", synced)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("what", ["rows", "sync"])
def test_a_full_disk_costs_no_step(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The checkpoint holds the rows that their file could not take; the training continues."""
    config = replace(SHORT, checkpoint_every=2)
    full = Full(monkeypatch, 2, what)
    with pytest.raises(GossamerError, match=r"No space.*all 2 steps.*--resume") as caught:
        train(config, tmp_path, console=QUIET)
    assert "\n" not in str(caught.value)
    assert load_checkpoint(tmp_path / CHECKPOINT)["step"] == 2
    full.on = False
    assert train(config, tmp_path, console=QUIET, resume=True).step == 3
    rows, whole = (read_metrics(out / METRICS) for out in (tmp_path, finished))
    assert [(r["step"], r["run"], r["loss"]) for r in rows] == [
        (r["step"], r["run"], r["loss"]) for r in whole
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_without_room_for_a_checkpoint_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Full(monkeypatch, 3, "rows")

    def no_room(path: Path, state: Any) -> None:
        if state["step"] == 3:
            raise CheckpointError(f"checkpoint {path} cannot be written: No space left on device")

    monkeypatch.setattr("gossamer.train.session.save_checkpoint", no_room)
    with pytest.raises(GossamerError, match=r"No space.*last checkpoint: step 2") as caught:
        train(replace(SHORT, checkpoint_every=2), tmp_path, console=QUIET)
    assert "\n" not in str(caught.value)


def test_the_picture_never_loses_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / PICTURE).mkdir()
    result = train(SHORT, tmp_path, console=QUIET)
    assert (result.step, result.interrupted) == (3, False)
    assert result.summaries[0].val_loss is not None
    assert not list(tmp_path.glob("*.tmp"))

    def broken(*args: Any) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr("gossamer.train.session.plot", broken)
    assert train(SHORT, tmp_path, console=QUIET, overwrite=True).summaries
    monkeypatch.setattr("gossamer.train.session.read_metrics", broken)
    with pytest.raises(RuntimeError):  # only errors of files are expected there
        train(SHORT, tmp_path, console=QUIET, overwrite=True)
    assert load_checkpoint(tmp_path / CHECKPOINT)["step"] == 3
