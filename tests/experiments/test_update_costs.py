"""Costs of updates: everything is checked, measured and shown."""

from pathlib import Path

import pytest

from experiments.update_costs import study
from gossamer import GossamerError


def test_all_patterns_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = study.run(tmp_path, (64, 32), batch=8, rounds=1, every=(1, 3)).read_text()
    assert "| AdamW | Muon, k = 1 | Muon, k = 3 |" in text
    assert all(f"| {pattern} |" in text for pattern in study.PATTERNS)
    assert (tmp_path / "update-costs.json").exists()
    monkeypatch.setattr(study, "Muon", lambda *args, **options: study.torch.optim.AdamW(args[0]))
    with pytest.raises(GossamerError, match="RMS"):
        study.run(tmp_path, (64, 32), batch=8, rounds=1)
