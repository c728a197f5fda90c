"""The README's example runs as it stands, and its files exist."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from gossamer import SparseLinear

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = EXAMPLES[0]
    script = tmp_path / "example.py"
    script.write_text(example, encoding="utf-8")
    names = runpy.run_path(str(script))

    assert "2:4:v4" in capsys.readouterr().out  # the summary names the pattern
    assert names["y"].shape == (8, 3072)
    assert all(type(module).__name__ != "SparseLinear" for module in names["model"])


def test_the_transport_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "transport.py"
    script.write_text(EXAMPLES[1], encoding="utf-8")
    names = runpy.run_path(str(script))

    assert capsys.readouterr().out.startswith("converged")
    assert names["x"].grad.abs().sum() > 0
    assert ((names["few"].plan > 0).sum(0) <= 8).all()


def test_the_recipe_example_runs(tmp_path: Path) -> None:
    script = tmp_path / "recipe.py"
    script.write_text(EXAMPLES[2], encoding="utf-8")
    names = runpy.run_path(str(script))

    layer = names["model"][0]
    assert isinstance(layer, SparseLinear)
    assert layer.weight.density == 0.5
    assert type(names["model"][2]) is torch.nn.Linear
    assert names["loss"] < 0.5


def test_the_proximal_example_runs(tmp_path: Path) -> None:
    script = tmp_path / "proximal.py"
    script.write_text(EXAMPLES[3], encoding="utf-8")
    names = runpy.run_path(str(script))

    model, smaller, x = names["model"], names["smaller"], names["x"]
    alive = int((model[0].weight != 0).any(1).sum())
    assert 0 < alive < 256
    assert smaller[0].out_features <= alive
    assert (model[2].weight == 0).any()
    assert torch.allclose(smaller(x), model(x), atol=1e-5)


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README))
def test_linked_files_exist(path: str) -> None:
    assert (ROOT / path).is_file()
