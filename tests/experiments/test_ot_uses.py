"""Optimal transport at work: pictures and numbers of small problems."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from bench.transport import cases
from bench.transport.cases import ASSIGNMENT, DIGITS_L1, DIGITS_L2, FULL, POINTS, Case
from experiments.cli import app
from experiments.transport import uses
from gossamer.errors import DataError


@pytest.mark.parametrize("name", uses.USES)
def test_uses_give_a_picture_and_numbers(name: str, tmp_path: Path) -> None:
    if name == "digits":
        pytest.importorskip("sklearn")
    found = uses.run(tmp_path, [name], quick=True)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "uses.json").read_text()) == found
    numbers = found[name]
    if name == "digits":
        assert all(numbers[f]["auto"]["status"] == "converged" for f in (DIGITS_L1, DIGITS_L2))
    elif name == "colours":
        assert numbers["after"] < 0.05 * numbers["before"]
    elif name == "points":
        assert numbers["last"] < 0.5 * numbers["first"]
    else:
        counts = [numbers[Case(POINTS, 30, reg).pattern]["entries"] for reg in (1e-1, 1e-3)]
        assert counts[1] < counts[0]


def test_unknown_uses_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="choose among digits, colours, points, plans"):
        uses.run(tmp_path, ["nothing"])


def test_without_scikit_learn_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "find_spec", lambda _: None)
    assert {case.family for case in FULL.scope.cases} == {ASSIGNMENT, POINTS}
    cases.build.cache_clear()
    with pytest.raises(DataError, match="pip install scikit-learn"):
        cases.build(Case(DIGITS_L1, 60, 1e-2), 0)
    monkeypatch.setattr(uses, "USES", {"digits": uses.digits})
    assert uses.run(tmp_path) == {"digits": cases.NO_DIGITS}


def test_mass_on_its_way_is_kept() -> None:
    plan = torch.tensor([[0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.25, 0.25]]).double()
    plan = torch.cat([plan, torch.zeros(2, 4)]).to_sparse_csr()
    at = cases.grid(4)
    for t in (0.0, 0.3, 1.0):
        image = uses._on_the_way(plan, at, t)
        assert image.sum() == pytest.approx(1.0)
    assert image.tolist() == [[0.5, 0.0], [0.25, 0.25]]


def test_the_command_line_shows_them(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["transport", "plans", "--quick", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "plans: {'n': 30" in done.output
    assert {path.name for path in tmp_path.iterdir()} == {"plans.png", "uses.json"}
