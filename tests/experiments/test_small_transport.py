"""Tiny transport problems beside torch: all sizes are checked, and shown."""

from pathlib import Path

import pytest
import torch

from experiments.small_transport import study
from gossamer import GossamerError


def test_all_sizes_are_checked_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = study.run(tmp_path, ((4, 40), (6, 10)), calls=2).read_text()
    assert "| 40 | 4×4 |" in text
    assert "| 10 | 6×6 |" in text
    monkeypatch.setitem(study.METHODS, "torch, divisions", lambda s: torch.softmax(s, -1))
    with pytest.raises(GossamerError, match="another gradient"):
        study.run(tmp_path, ((4, 40),), calls=1)
