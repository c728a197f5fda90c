"""The README is short, its example runs as it stands, and the files that it links to exist."""

from pathlib import Path

import pytest

from support.fences import ROOT, broken_links, run_fence


def test_the_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_fence("README.md", "quickstart.py", tmp_path)

    assert "2:4:v4" in capsys.readouterr().out  # the summary names the pattern
    assert names["model"][0].weight.density == 0.5
    assert names["loss"] < 2.3


def test_it_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "csrc/README.md"])
def test_linked_files_exist(page: str) -> None:
    assert not broken_links(ROOT / page)
