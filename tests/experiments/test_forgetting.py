"""The experiment on forgetting: its proximal step, what is trained and shown."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from experiments.forgetting.study import NAME, SHOTS, study
from experiments.forgetting.training import METHODS, PLAIN, PROX, Plan, Run, measure, shrink_

pytestmark = [pytest.mark.slow, pytest.mark.process]
TINY = Plan(width=8, blocks=2, epochs=1, steps=2, rank=2)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 3.0, 100.0])
def test_the_step_is_the_proximal_one_of_the_joint_norm(threshold: float) -> None:
    torch.manual_seed(0)
    group = [torch.randn(3, 2), torch.randn(4)]
    before = torch.cat([t.flatten() for t in group])
    shrink_(group, threshold)
    found = torch.cat([t.flatten() for t in group])

    def value(x: torch.Tensor) -> float:
        return float(0.5 * (x - before).square().sum() + threshold * x.norm())

    for _ in range(50):
        assert value(found) <= value(found + 0.05 * torch.randn(10)) + 1e-6
    assert bool((found == 0).all()) == (threshold >= float(before.norm()))
    shrink_([torch.zeros(2)], threshold)


def test_strong_groups_become_zero_and_the_network_is_the_old_one() -> None:
    row = measure(Plan(width=8, blocks=2, epochs=1, steps=2, rank=2, alpha=1e4), Run(PROX, 0, 0))
    assert row["zero"] == 2
    assert (row["forgotten"], row["others"]) == (row["forgotten before"], row["others before"])
    assert measure(TINY, Run(PLAIN, 4, 0))["zero"] == 0


def test_a_file_is_made_and_its_page(tmp_path: Path) -> None:
    assert study(tmp_path, TINY, seeds=1, console=Console(file=io.StringIO(), width=200)) == 0
    rows = [json.loads(line) for line in (tmp_path / f"{NAME}.jsonl").read_text().splitlines()]
    assert len(rows) == 1 + len(METHODS) * len(SHOTS)
    assert "| GS-LoRA++ |" in (tmp_path / f"{NAME}.md").read_text()
