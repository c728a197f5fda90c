"""The bench of the mask kernels runs, and its table tells what was measured."""

import json
from pathlib import Path

import pytest
import torch

from gossamer.bench import masks_bench
from gossamer.bench.rivals import WrongResultError

KEYS = {
    "kernel",
    "case",
    "threads",
    "gossamer_seconds",
    "rival",
    "rival_seconds",
    "bar",
    "ratio",
    "note",
}


def test_writes_rows_and_table(tmp_path: Path) -> None:
    shown: list[str] = []
    found = masks_bench.main(["--quick", "--only-select", "--out", str(tmp_path)], shown.append)
    assert json.loads((tmp_path / "masks.json").read_text()) == found
    assert (tmp_path / "masks.md").read_text() == shown[0]
    assert "quick run" in shown[0]
    names = [(r["kernel"], r["case"].split(",")[0], r["threads"]) for r in found["rows"]]
    want = [("select_nm", p) for p in masks_bench.PATTERNS] + [("add_pruned_", "2:4")]
    assert names == [(*name, count) for count in (1, 2) for name in want]
    for row in found["rows"]:
        assert set(row) == KEYS
        assert row["ratio"] > 0


def test_ratio_is_a_share_of_bandwidth(tmp_path: Path) -> None:
    found = masks_bench.rows(quick=True)
    by_pattern = {r["case"].split(",")[0]: r for r in found if r["kernel"] == "select_nm"}
    # 2:4 reads 4 bytes an entry, writes half the values and half the ids: 4 + 2 + 0.5 of 8.
    for pattern, share in (("2:4", 6.5 / 8), ("2:4:v4", 6.125 / 8), ("1:16", 4.3125 / 8)):
        row = by_pattern[pattern]
        assert row["ratio"] == pytest.approx(share * row["rival_seconds"] / row["gossamer_seconds"])


def test_table_marks_bars() -> None:
    row = dict.fromkeys(KEYS, "x") | {"threads": 1, "gossamer_seconds": 2.0, "rival_seconds": None}
    rows = [row | {"bar": b, "ratio": r} for b, r in ((0.6, 0.59), (0.6, 0.6), (None, 3.0))]
    machine = {"cpu": "c", "cores": 2, "isa": "i", "versions": {"torch": "t"}}
    text = masks_bench.as_markdown(
        {"machine": machine, "commit": None, "quick": False, "rows": rows}
    )
    assert "0.59 ✗" in text
    assert "0.6 ✓" in text
    assert "| 3 | – |" in text
    assert "1 of 2 bars met" in text


def test_a_wrong_selection_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = masks_bench.magnitude_mask
    monkeypatch.setattr(masks_bench, "magnitude_mask", lambda w, p: plain(-w.flip(1), p))
    with pytest.raises(WrongResultError, match="2:4"):
        masks_bench._verify(torch.randn(8, 16), "2:4")
