import itertools
import sysconfig
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import ArgumentError, DataError, ShapeError
from gossamer.train.data import Corpus, Windows, load_corpus, spaced_windows


@pytest.fixture(scope="module")
def stdlib() -> Corpus:
    return load_corpus(context=128)


def text(tokens: torch.Tensor) -> bytes:
    return tokens.numpy().tobytes()


def folder(root: Path, files: int = 30) -> dict[str, bytes]:
    contents = {f"{i % 3}/{i}.txt": f"<{i}>{'x' * (100 + i)}\n".encode() for i in range(files)}
    for name, content in contents.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    return contents


@pytest.mark.slow
def test_the_standard_library_is_enough_text(stdlib: Corpus) -> None:
    assert len(stdlib.train) + len(stdlib.validation) >= 5_000_000
    assert 0.04 < len(stdlib.validation) / len(stdlib.train) < 0.2
    assert stdlib.vocabulary == 256
    assert load_corpus(context=128).fingerprint == stdlib.fingerprint


def test_the_standard_library_is_split_by_file_and_without_tests(stdlib: Corpus) -> None:
    root = Path(sysconfig.get_path("stdlib"))
    train, validation = text(stdlib.train), text(stdlib.validation)
    for name in ("argparse.py", "json/decoder.py", "asyncio/tasks.py", "ast.py", "typing.py"):
        content = (root / name).read_bytes()
        assert (content in train) != (content in validation), name
    assert b"class BaseTestUUID" not in train + validation  # of test/test_uuid.py


def test_a_folder_is_split_by_whole_files_in_order(tmp_path: Path) -> None:
    contents = folder(tmp_path)
    corpus = load_corpus(tmp_path)
    held_out = [name for name, content in contents.items() if content in text(corpus.validation)]
    assert 1 <= len(held_out) < 5
    for part, names in (
        (corpus.validation, sorted(held_out)),
        (corpus.train, sorted(contents.keys() - held_out)),
    ):
        assert text(part) == b"".join(contents[name] for name in names)


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    folder(tmp_path)
    before = load_corpus(tmp_path).fingerprint
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "index").write_bytes(b"\xff\xfe")
    (tmp_path / ".hidden").write_text("secret")
    assert load_corpus(tmp_path, "char").fingerprint != before
    assert load_corpus(tmp_path).fingerprint == before


def test_a_file_gives_its_end_to_validation(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(bytes(range(256)) * 8)
    corpus = load_corpus(file)
    assert text(corpus.train) + text(corpus.validation) == file.read_bytes()
    assert round(0.05 * 2048) <= len(corpus.validation) <= round(0.05 * 2048) + 3


@pytest.mark.parametrize("letters", ["ab€", "é", "a😀b", "日本語x"])
def test_characters_are_tokens_one_to_one(tmp_path: Path, letters: str) -> None:
    file = tmp_path / "a.txt"
    content = (letters * 101)[: 101 * len(letters) - 1]
    file.write_text(content, encoding="utf-8")
    corpus = load_corpus(file, "char")
    tokens = corpus.train.tolist() + corpus.validation.tolist()
    assert len(tokens) == len(content)
    assert len(set(zip(tokens, content, strict=True))) == len(set(letters))
    assert corpus.vocabulary == len(set(letters)) + 1


def test_characters_new_in_validation_share_a_token(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("ab" * 100 + "Éz", encoding="utf-8")
    corpus = load_corpus(file, "char")
    assert corpus.vocabulary == 3
    assert corpus.validation[-2:].tolist() == [2, 2]
    assert corpus.train.max() == 1


def test_the_fingerprint_sees_text_split_and_level(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    prints = set()
    for content in (b"a" * 100, b"a" * 99 + b"b", b"a" * 101):
        file.write_bytes(content)
        prints |= {load_corpus(file).fingerprint, load_corpus(file, "char").fingerprint}
    assert len(prints) == 6


def test_bad_text_is_a_clear_error(tmp_path: Path) -> None:
    empty, short, binary, hidden = (tmp_path / name for name in ("e", "s", "b", "h"))
    empty.write_bytes(b"")
    short.write_bytes(b"x" * 40)
    binary.write_bytes(b"abc" * 50 + b"\xff" + b"abc")
    hidden.mkdir()
    (hidden / ".x").write_text("x" * 999)
    (hidden / "empty").touch()
    with pytest.raises(DataError, match="does not exist; give --data"):
        load_corpus(tmp_path / "missing")
    with pytest.raises(DataError, match="holds no text"):
        load_corpus(empty)
    with pytest.raises(DataError, match="holds no text"):
        load_corpus(hidden)
    with pytest.raises(DataError, match=r"training part .* has 38 bytes, the context is 64"):
        load_corpus(short, context=64)
    with pytest.raises(DataError, match=r"validation part .* has 2 bytes, the context is 2"):
        load_corpus(short, context=2)
    with pytest.raises(DataError, match=r"not UTF-8 .byte 0xff at offset 150"):
        load_corpus(binary, "char")
    assert len(load_corpus(binary).train) > 100
    with pytest.raises(DataError, match="'byte' or 'char'"):
        load_corpus(short, "word")  # type: ignore[arg-type]


def test_a_path_that_no_file_can_have_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"cannot be read|does not exist"):
        load_corpus("x" * 5000)


@given(
    extra=st.integers(1, 60),
    context=st.integers(1, 12),
    batch=st.integers(1, 7),
    seed=st.integers(0, 2**40),
    index=st.integers(0, 50),
)
def test_batches_are_windows_of_the_text_and_depend_on_their_number_alone(
    extra: int, context: int, batch: int, seed: int, index: int
) -> None:
    tokens = torch.arange(context + extra)
    windows = Windows(tokens, context, batch, seed)
    for i in range(3):
        windows.batch(i)
    inputs, targets = windows.batch(index)
    again = Windows(tokens, context, batch, seed).batch(index)
    assert torch.equal(inputs, again[0])
    assert torch.equal(targets, again[1])
    assert inputs.shape == targets.shape == (batch, context)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(context))


def test_an_epoch_has_every_window_once_and_the_next_has_another_order() -> None:
    windows = Windows(torch.arange(1000), context=7, batch=1, seed=3)
    epochs = []
    for epoch in range(2):
        numbers = range(epoch * windows.per_epoch, (epoch + 1) * windows.per_epoch)
        starts = [int(windows.batch(i)[0][0, 0]) for i in numbers]
        ordered = sorted(starts)
        assert all(b - a == 7 for a, b in itertools.pairwise(ordered))
        assert starts != ordered
        epochs.append(starts)
    assert epochs[0] != epochs[1]
    other = Windows(torch.arange(1000), context=7, batch=1, seed=4)
    assert int(other.batch(0)[0][0, 0]) != epochs[0][0]


def test_a_batch_may_span_epochs() -> None:
    windows = Windows(torch.arange(20), context=5, batch=7, seed=0)
    assert windows.batch(0)[0].shape == (7, 5)


@pytest.mark.parametrize(
    ("context", "batch", "seed", "text"),
    [
        (0, 1, 0, "context=0"),
        (1, 0, 0, "batch=0"),
        (1, 1, -1, "seed=-1"),
        (10, 1, 0, "10 tokens, context=10"),
    ],
)
def test_windows_reject(context: int, batch: int, seed: int, text: str) -> None:
    with pytest.raises(ArgumentError, match=f"Windows got .*{text}") as raised:
        Windows(torch.arange(10), context, batch, seed)
    assert isinstance(raised.value, ShapeError) == ("tokens" in text)


@given(length=st.integers(2, 80), context=st.integers(1, 20), count=st.integers(1, 30))
def test_validation_windows_are_spread_over_all_the_text(
    length: int, context: int, count: int
) -> None:
    length += context
    inputs, targets = spaced_windows(torch.arange(length), context, count)
    assert torch.equal(targets, inputs + 1)
    assert len(inputs) <= count
    starts = inputs[:, 0].tolist()
    assert starts[0] == 0
    if len(starts) > 1:
        assert targets[-1, -1] == length - 1
        assert all(b - a >= context for a, b in itertools.pairwise(starts))
