"""The bench of the mask kernels runs, and its table shows what was measured."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench.harness.bars import verdicts
from bench.harness.contest import WrongResultError
from bench.harness.record import GOSSAMER, Quartiles, Record
from bench.harness.results import Results
from bench.harness.run import Options, run_topic
from bench.masks import TOPIC, changes, making, selection, tiles
from bench.masks.selection import COPY, QUICK, SELECT
from bench.masks.tables import BARS, page
from gossamer import SparseLinear

TINY = replace(QUICK, threads=(1, 2), seconds=0.0, rounds=(2, 2))


def selected() -> list[Record]:
    return [record for job in selection.jobs(TINY) for record in job.run([])]


def test_writes_rows_and_table(tmp_path: Path) -> None:
    shown = StringIO()
    options = Options(quick=True, only=(selection.GROUP,), out=tmp_path)
    topic = replace(TOPIC, quick=replace(TINY, threads=(1,)))
    assert run_topic(topic, options, Console(file=shown, width=200)) == 0
    (path,) = tmp_path.glob("*-masks.json")
    found = Results.load(path)
    assert path.with_suffix(".md").read_text() == page(found).markdown()
    assert "quick run" in shown.getvalue()
    names = [(r.topic, r.pattern, r.threads) for r in found.records]
    want = [(SELECT, text) for text in selection.PATTERNS] + [("add_pruned_", "2:4")]
    assert names == [(*name, 1) for name in want]
    assert all(verdict.value > 0 for verdict in verdicts(found.records, BARS))


def test_every_number_of_threads_is_measured() -> None:
    want = [(SELECT, text) for text in selection.PATTERNS] + [("add_pruned_", "2:4")]
    keys = [key for job in selection.jobs(TINY) for key in job.keys]
    assert [(k[0], k[2], k[4]) for k in keys] == [(*w, count) for count in (1, 2) for w in want]


def test_ratio_is_a_share_of_bandwidth() -> None:
    by_pattern = {r.pattern: r for r in selected() if r.topic == SELECT and r.threads == 1}
    # 2:4 reads 4 bytes an entry, writes half the values and half the ids: 4 + 2 + 0.5 of 8.
    for pattern, share in (("2:4", 6.5 / 8), ("2:4:v4", 6.125 / 8), ("1:16", 4.3125 / 8)):
        record = by_pattern[pattern]
        (verdict,) = verdicts([record], BARS)
        slower = record.measured[COPY].median / record.measured[GOSSAMER].median
        assert verdict.value == pytest.approx(share * slower)


def made(share: float, topic: str = f"{tiles.QUALITY}, entropy") -> Record:
    measured = {GOSSAMER: Quartiles.exactly(share)}
    return Record(topic, "8x8", "2:4", "float32", 1, 0.5, GOSSAMER, "of the optimum", measured, {})


def test_table_marks_bars(tmp_path: Path) -> None:
    machine = {
        "cpu": "c", "cores": 2, "caches": {}, "isa": "i", "system": "s",
        "versions": {"torch": "t"},
    }  # fmt: skip
    records = [made(0.9), made(0.97), made(0.5, f"{tiles.QUALITY}, greedy")]
    text = page(Results(tmp_path / "r.json", machine, {"quick": False}, [], records)).markdown()
    assert "90.0% ✗" in text
    assert "97.0% ✓" in text
    assert "| 50.00% |" in text
    assert "1 of 2 bars met" in text


def test_a_wrong_selection_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = selection.magnitude_mask
    monkeypatch.setattr(selection, "magnitude_mask", lambda w, p: plain(-w.flip(1), p))
    with pytest.raises(WrongResultError, match="2:4"):
        selection.verify(torch.randn(8, 16), "2:4")


def test_new_layers_are_made_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [r for job in making.jobs(replace(TINY, threads=(1,))) for r in job.run([])]
    assert [r.pattern for r in records] == list(making.PATTERNS)
    assert all(r.measured[making.NN_LINEAR].median > 0 for r in records)
    assert [v.record.pattern for v in verdicts(records, BARS)] == ["99%", "99%:v4"]
    monkeypatch.setattr(SparseLinear, "reset_parameters", lambda layer: None)
    with pytest.raises(WrongResultError, match="do not fill"):
        making.verify(64, "50%")


def test_changes_of_masks_are_checked_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(TINY, threads=(1,))
    records = [r for job in changes.jobs(tiny) for r in job.run([])]
    names = [(kind, p) for kind, (_, patterns) in changes.UPDATES.items() for p in patterns]
    steps = (changes.SET_STEPS, changes.RIGL_STEPS)
    names += [(kind, p) for p in changes.CYCLED for kind in steps]
    names += [(changes.MOVE, p) for p in changes.MOVED]
    assert [(r.topic, r.pattern) for r in records] == names
    assert len(verdicts(records, BARS)) == len(records)
    monkeypatch.setattr(changes.SET, "update", lambda *_: None)
    with pytest.raises(WrongResultError, match="a wrong update"):
        changes.verify(changes.Updated(changes.SET, "90%", 64))
    with pytest.raises(WrongResultError, match="did not move"):
        next(job for job in changes.jobs(tiny) if changes.SET_STEPS in job.keys[0]).run([])


def test_every_update_of_the_bench_moves_the_mask() -> None:
    """A seed that repeats would grow again what was dropped, and nothing would be timed."""
    for kind, _ in changes.UPDATES.values():
        one = changes.Updated(kind, "2:4", 64)
        for _ in range(4):
            before = one.weight.mask()
            one.prepare()
            one.update()
            assert not torch.equal(before, one.weight.mask())


@pytest.mark.slow
def test_the_records_meet_their_bars_of_quality() -> None:
    records = [record for job in tiles.jobs(replace(TINY, threads=(1,))) for record in job.run([])]
    assert any(record.unit == "s" for record in records)
    judged = [v for v in verdicts(records, BARS) if v.record.topic.startswith(tiles.QUALITY)]
    assert len(judged) == 5
    assert all(v.met for v in judged)
