"""The examples run with tiny settings, are short, and use only public names."""

import ast
import importlib
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DOTTED = re.compile(r"gossamer(\.\w+)+")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

pytestmark = pytest.mark.usefixtures("one_thread")


def main_of(name: str) -> Any:
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]


@pytest.mark.slow
def test_gpt(capsys: pytest.CaptureFixture[str]) -> None:
    losses = main_of("gpt")(20)
    assert losses[-1] < losses[0] - 1.0
    assert "2:4:v4" in capsys.readouterr().out


@pytest.mark.slow
def test_digits() -> None:
    accuracy, neurons = main_of("digits")(4)
    assert accuracy > 0.5
    assert 0 < neurons < 384


@pytest.mark.slow
def test_hugging_face() -> None:
    pytest.importorskip("transformers")
    losses = main_of("hugging_face")(4)
    assert losses[-1] < losses[0]


def test_transport() -> None:
    before, after = main_of("transport")(8, count=60)
    assert after < 0.5 * before


@pytest.mark.slow
def test_autoencoder() -> None:
    explained, found = main_of("autoencoder")(150)
    assert explained > 0.6
    assert found > 0.4


@pytest.mark.slow
def test_a_resumed_run_is_bit_equal() -> None:
    assert main_of("resume")(20)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the library
def test_lightning_trainer() -> None:
    pytest.importorskip("pytorch_lightning")
    losses = main_of("lightning_trainer")(60)
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the library
def test_lora(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    losses, off = main_of("lora")(6)
    assert losses[-1] < losses[0]
    assert "masks are the same" in capsys.readouterr().out
    assert off < 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("library", ["torchao", "bitsandbytes"])
def test_eight_bit(library: str) -> None:
    pytest.importorskip(library)
    losses, size = main_of("eight_bit")(30, library)
    assert losses[-1] < losses[0]
    assert size == 2  # two moments of one byte each


@pytest.mark.slow
def test_resnet() -> None:
    losses = main_of("resnet")(20, 32)
    assert list(losses) == ["dense", "2:4:v4", "90%:v4", "95%:v4"]
    assert all(min(course[-5:]) < course[0] - 0.1 for course in losses.values())


def test_there_are_eleven() -> None:
    assert len(EXAMPLES) == 11  # tests/patterns run band.py


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_uses_public_names_only(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = {
        (str(node.module), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("gossamer")
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and DOTTED.fullmatch(ast.unparse(node)):
            module, _, name = ast.unparse(node).rpartition(".")
            used.add((module, name))
    assert used
    for module, name in used:
        if module.count(".") < 2:  # below that are attributes of objects
            home = importlib.import_module(module)
            public = getattr(home, "__all__", dir(home))
            assert name in public, f"{module}.{name}"
            assert not name.startswith("_"), f"{module}.{name}"
