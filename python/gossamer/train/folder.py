"""The folder of a training: one training at a time, and its files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from gossamer.errors import CheckpointError, GossamerError
from gossamer.train.checkpoint import CHECKPOINT
from gossamer.train.metrics import METRICS
from gossamer.train.plot import PICTURE

LOCK = ".lock"  # stays in the folder: removing it would let two trainings in
FILES = (CHECKPOINT, METRICS, PICTURE)


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold the folder of a training alone, and create it if it is missing.

    A folder that was created and in which nothing was written is removed again.

    Args:
        out: the folder.

    Raises:
        CheckpointError: another training holds it.
        GossamerError: it cannot be created or written.
    """
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / LOCK, blocking=False)
        lock.acquire()
    except Timeout as error:
        raise CheckpointError(
            f"another training is writing into {out}; wait for it to end, or choose another --out"
        ) from error
    except OSError as error:
        raise GossamerError(
            f"--out {out} cannot be written: {error.strerror}; choose another folder"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may be gone
            if created and [path.name for path in out.iterdir()] == [LOCK]:
                (out / LOCK).unlink()
                for folder in created:
                    folder.rmdir()
        lock.release()


def sweep(out: Path) -> None:
    """Remove the unfinished files that killed trainings left in a folder that is held."""
    for name in FILES:
        for path in out.glob(f"{name}.*.tmp"):
            path.unlink(missing_ok=True)


def written_by_trainings(data: str | None, out: Path) -> list[Path]:
    """The files in a folder of text that this training or others wrote there.

    Args:
        data: file or folder of the text; None is no folder of the user's.
        out: folder of this training.

    Returns:
        Checkpoints, metrics and pictures, also unfinished ones, in `out` and beside every
        checkpoint below `data`.
    """
    if data is None or not Path(data).is_dir():
        return []
    folders = {out, *(path.parent for path in Path(data).rglob(CHECKPOINT))}
    return [
        path
        for folder in folders
        for name in FILES
        for path in (folder / name, *folder.glob(f"{name}.*.tmp"))
    ]
