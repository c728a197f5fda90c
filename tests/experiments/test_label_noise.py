"""The experiments on the digits with wrong labels and fewer rows: what is trained and shown."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from experiments.label_noise import pruning
from experiments.label_noise.study import NAME, chosen, study
from experiments.label_noise.training import BASE, Plan, Training, measure
from gossamer.errors import ArgumentError

pytestmark = pytest.mark.slow

TINY = Plan(epochs=1, batch=250, width=32)
SHORT = Plan(epochs=15, width=64)
RADII = {BASE: (0.0,), "SAM": (0.1, 0.2), "MSAM": (1.0,)}


def test_a_file_is_continued_and_shown(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    for seeds in (1, 2):
        assert study(tmp_path, TINY, radii=RADII, seeds=seeds, console=console) == 0
    rows = [json.loads(line) for line in (tmp_path / f"{NAME}.jsonl").read_text().splitlines()][1:]
    assert len(rows) == 2 * 4 * 2
    text = (tmp_path / f"{NAME}.md").read_text()
    assert "| 90 % | SAM | 0." in text
    with pytest.raises(ArgumentError, match="seeds"):
        study(tmp_path, TINY, seeds=0, console=console)


def test_a_training_repeats_and_methods_differ() -> None:
    one = measure(SHORT, Training(90, BASE, 0.0, 0))
    assert one == measure(SHORT, Training(90, BASE, 0.0, 0))
    assert one["test"] > 0.2
    runs = [measure(SHORT, Training(90, who, 0.5, 0))["choice"] for who in ("SAM", "MSAM")]
    assert runs[0] != runs[1]


def test_the_radius_is_chosen_by_other_images() -> None:
    row = {"sparsity": 90, "seed": 0, "method": "SAM"}
    rows = [
        row | {"rho": 0.1, "choice": 0.9, "test": 0.5},
        row | {"rho": 0.2, "choice": 0.8, "test": 0.9},
    ]
    assert chosen(rows, 90) == [("SAM", 0.1, [0.5], [0.1, 0.2])]


def test_rows_are_removed_after_each_method(tmp_path: Path) -> None:
    radii = {BASE: (0.0,), "SAM": (0.1,), "AdaSAP": (0.5, 1.0)}
    console = Console(file=io.StringIO(), width=200)
    plan = Plan(epochs=4, batch=50, width=32)
    for _ in range(2):
        assert pruning.study(tmp_path, plan, radii=radii, seeds=1, console=console) == 0
    path = tmp_path / f"{pruning.NAME}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()][1:]
    assert len(rows) == 4
    assert all(len(row[of]) == 1 + len(pruning.KEEPS) for row in rows for of in ("test", "noisy"))
    assert len({tuple(row["test"]) for row in rows}) > 1
    assert "| AdaSAP |" in path.with_suffix(".md").read_text()
