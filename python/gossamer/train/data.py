"""Training text: reads it, splits it by file, and cuts it into tokens and windows.

The default corpus is the source of Python's standard library, which every machine has. Files are
read in the order of their paths, so that a folder always gives the same corpus. Batch i is a pure
function of (seed, i), so the step alone determines a run's position in the data.
"""

import hashlib
import os
import sysconfig
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gossamer.arguments import check
from gossamer.errors import ArgumentError, DataError, ShapeError

VALIDATION_SHARE = 0.05
# Test suites contain invalid files; installed packages differ between machines.
STDLIB_SKIPPED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})


@dataclass(frozen=True)
class Corpus:
    """Tokens of a text, in two parts from disjoint files.

    Args:
        train: training tokens, 1-D, uint8 or int32.
        validation: validation tokens, 1-D, uint8 or int32.
        vocabulary: number of different tokens.
        name: display name of the text.
        fingerprint: SHA-256 of tokens and vocabulary, in hex.
    """

    train: Tensor
    validation: Tensor
    vocabulary: int
    name: str
    fingerprint: str


def load_corpus(
    path: str | Path | None = None,
    level: str = "byte",
    context: int = 1,
    leave_out: Collection[Path] = (),
) -> Corpus:
    """Read a corpus and split it into a training and a validation part.

    One file in twenty (by size) is for validation, selected by a checksum of its path; of a single
    file the end is. At byte level a token is a byte of any file. At char level files must be UTF-8,
    a token is a character of the training part, and characters that occur in validation only share
    one extra token.

    Args:
        path: a file, or a folder that is read recursively without hidden files; None reads the
            `*.py` files of Python's standard library without its tests.
        level: `"byte"` or `"char"`.
        context: tokens per window; each part must hold at least one window.
        leave_out: files that are no text, although they are in the folder.

    Returns:
        The corpus.

    Raises:
        DataError: the path is missing, unreadable, or a pipe or device; it holds no text, is not
            UTF-8 at char level, is too short for `context`, or the level is unknown.

    Example:
        >>> corpus = load_corpus(context=128)
        >>> corpus.vocabulary, len(corpus.train) > 4_000_000
        (256, True)
    """
    check(load_corpus, locals())
    if level not in ("byte", "char"):
        raise DataError(f"level is {level!r}; it must be 'byte' or 'char'")
    root = Path(sysconfig.get_path("stdlib")) if path is None else Path(path)
    name = "Python standard library" if path is None else str(path)
    left = {Path(os.path.realpath(file)) for file in leave_out}
    texts = {file: content for file, content in _read(root, left, stdlib=path is None) if content}
    if not texts:
        raise DataError(
            f"{name} holds no text: every file is empty or hidden, or there is none; "
            "give --data a file or folder of text"
        )
    if level == "char":
        for file, content in texts.items():
            _check_utf8(file, content)
    train, validation = _split(root, texts)
    if level == "byte":
        corpus = _tokenise_bytes(train, validation, name)
    else:
        corpus = _tokenise_characters(train, validation, name)
    for part, tokens in (("training", corpus.train), ("validation", corpus.validation)):
        if len(tokens) <= context:
            raise DataError(
                f"the {part} part of {name} has {len(tokens)} {level}s, the context is {context}; "
                f"at least {context + 1} are needed: give more text or a shorter --context"
            )
    return corpus


def _read(root: Path, left: set[Path], stdlib: bool) -> Iterator[tuple[Path, bytes]]:
    try:
        if root.is_dir():
            files = sorted(
                (file for file in root.rglob("*.py" if stdlib else "*") if file.is_file()),
                key=lambda file: file.relative_to(root).as_posix(),
            )
        elif root.is_file():
            files = [root]
        elif root.exists():
            raise DataError(
                f"{root} is a pipe or a device, which can be read once at most; give --data a file "
                "or folder of text"
            )
        else:
            raise DataError(f"{root} does not exist; give --data a file or folder of text")
        for file in files:
            parts = file.relative_to(root).parts
            if any(part.startswith(".") for part in parts):
                continue
            if stdlib and not STDLIB_SKIPPED.isdisjoint(parts):
                continue
            if left and Path(os.path.realpath(file)) in left:
                continue
            content = file.read_bytes()
            if stdlib and not _is_utf8(content):
                continue
            yield file, content
    except OSError as error:
        raise DataError(f"{error.filename or root} cannot be read: {error.strerror}") from error


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _check_utf8(file: Path, content: bytes) -> None:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 (byte 0x{content[error.start]:02x} at offset {error.start}); "
            "convert the file, leave it out of --data, or use --level byte"
        ) from error


def _split(root: Path, texts: dict[Path, bytes]) -> tuple[bytes, bytes]:
    wanted = VALIDATION_SHARE * sum(map(len, texts.values()))
    if len(texts) == 1:
        (content,) = texts.values()
        cut = len(content) - max(1, round(wanted))
        # A character must not be split: up to three bytes 10xxxxxx continue one.
        for _ in range(3):
            cut -= cut > 0 and content[cut] & 0xC0 == 0x80
        return content[:cut], content[cut:]

    def rank(file: Path) -> tuple[int, str]:
        relative = file.relative_to(root).as_posix()
        return zlib.crc32(relative.encode("utf-8", "surrogateescape")), relative

    held_out: set[Path] = set()
    size = 0
    for file in sorted(texts, key=rank)[:-1]:
        if size >= wanted:
            break
        held_out.add(file)
        size += len(texts[file])
    return (
        b"".join(text for file, text in texts.items() if file not in held_out),
        b"".join(text for file, text in texts.items() if file in held_out),
    )


def _tokenise_bytes(train: bytes, validation: bytes, name: str) -> Corpus:
    parts = [np.frombuffer(part, np.uint8).copy() for part in (train, validation)]
    return _corpus(parts, 256, name, b"bytes")


def _tokenise_characters(train: bytes, validation: bytes, name: str) -> Corpus:
    points = [
        np.frombuffer(part.decode().encode("utf-32-le"), np.uint32) for part in (train, validation)
    ]
    known = np.unique(points[0])
    parts = []
    for part in points:
        index = np.searchsorted(known, part).clip(max=len(known) - 1)
        parts.append(np.where(known[index] == part, index, len(known)).astype(np.int32))
    return _corpus(parts, len(known) + 1, name, known.tobytes())


def _corpus(parts: list[np.ndarray], vocabulary: int, name: str, alphabet: bytes) -> Corpus:
    digest = hashlib.sha256(alphabet)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part.tobytes())
    train, validation = map(torch.from_numpy, parts)
    return Corpus(train, validation, vocabulary, name, digest.hexdigest())


class Windows:
    """Windows of a token sequence, shuffled again in every epoch.

    Each epoch cuts the text into windows without overlap, from a random offset, and visits them in
    random order. A batch may span two epochs.

    Args:
        tokens: 1-D integer tokens, more than `context`.
        context: tokens per window.
        batch: windows per batch.
        seed: seed of offsets and order, at least 0.

    Raises:
        ArgumentError: a size is below 1, or the seed is negative.
        ShapeError: there are too few tokens.

    Example:
        >>> windows = Windows(torch.arange(100), context=4, batch=2, seed=0)
        >>> inputs, targets = windows.batch(7)
        >>> inputs.shape, torch.equal(targets, inputs + 1)
        (torch.Size([2, 4]), True)
    """

    def __init__(self, tokens: Tensor, context: int, batch: int, seed: int) -> None:
        check(Windows.__init__, locals())
        if context < 1 or batch < 1 or seed < 0:
            raise ArgumentError(
                f"Windows got context={context}, batch={batch}, seed={seed}; context and batch "
                "must be at least 1, seed at least 0"
            )
        if len(tokens) <= context:
            raise ShapeError(
                f"Windows got {len(tokens)} tokens, context={context}; more tokens than the "
                "context are needed: shorten the context, or give more text"
            )
        self.tokens, self.context, self.batch_size, self.seed = tokens, context, batch, seed
        # One window fewer than fits, so that the offset can vary.
        self.per_epoch = max(1, (len(tokens) - 1) // context - 1)
        self._epoch = -1
        self._starts = torch.empty(0, dtype=torch.long)

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Cut one batch.

        Args:
            index: number of the batch, from 0.

        Returns:
            Inputs and targets, int64 `[batch, context]`; targets are one position later.
        """
        check(Windows.batch, locals())
        starts = []
        for position in range(index * self.batch_size, (index + 1) * self.batch_size):
            epoch, place = divmod(position, self.per_epoch)
            starts.append(int(self._epoch_starts(epoch)[place]))
        return _cut(self.tokens, starts, self.context)

    def _epoch_starts(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            room = len(self.tokens) - 1 - self.per_epoch * self.context
            offset = int(random.integers(room + 1))
            order = torch.from_numpy(random.permutation(self.per_epoch))
            self._starts, self._epoch = order * self.context + offset, epoch
        return self._starts


def spaced_windows(tokens: Tensor, context: int, count: int) -> tuple[Tensor, Tensor]:
    """Cut evenly spaced windows, the fixed sample for the validation loss.

    Args:
        tokens: 1-D integer tokens, more than `context`.
        context: tokens per window.
        count: largest number of windows; a short text gives fewer, without overlap.

    Returns:
        Inputs and targets, int64 `[windows, context]`.

    Example:
        >>> spaced_windows(torch.arange(10), context=3, count=2)[0]
        tensor([[0, 1, 2],
                [6, 7, 8]])
    """
    check(spaced_windows, locals())
    last = len(tokens) - 1 - context
    count = max(1, min(count, (len(tokens) - 1) // context))
    starts = [round(last * i / max(1, count - 1)) for i in range(count)]
    return _cut(tokens, starts, context)


def _cut(tokens: Tensor, starts: list[int], context: int) -> tuple[Tensor, Tensor]:
    rows = torch.stack([tokens[start : start + context + 1] for start in starts]).long()
    return rows[:, :-1], rows[:, 1:].contiguous()
