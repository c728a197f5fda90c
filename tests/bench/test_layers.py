"""The bench of layers: bars, tables, pictures and jobs. No test depends on a time."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench.harness.record import Quartiles, Record
from bench.harness.training import state_bytes
from bench.layers import bars, cases, jobs, overhead
from bench.layers.bars import BOTH, CALL, FORWARD, STATE
from bench.layers.cases import NN_LINEAR, QUICK, SPARSEPROP, Shape
from bench.layers.picture import plot, points
from bench.layers.tables import page
from support.bench_records import made, results

SMALL = Shape(6, 32, 16)


@pytest.mark.parametrize(
    ("record", "met"),
    [
        (made(nn_Linear=4.6), True),
        (made(nn_Linear=4.59), False),
        (made(BOTH, nn_Linear=4.3), True),
        (made(SparseProp=2.5), False),
        (made(BOTH, SparseProp=2.5), True),
        (made(FORWARD, "2:4:v8", str(cases.DECODING), nn_Linear=1.7), True),
        (made(CALL, "2:4:v4", "1x8x8", subject=25e-6, nn_Linear=4e-6), False),
        (made(CALL, "2:4:v4", "1x8x8", subject=23e-6, nn_Linear=4e-6), True),
        (made(STATE, "2:4:v4", "8x8", subject=56.0, unit="B", nn_Linear=100.0), False),
        (made(STATE, "2:4:v4", "8x8", subject=55.0, unit="B", nn_Linear=100.0), True),
        (made(dtype="bfloat16", **{bars.FLOAT32: 0.8}), True),
        (made(dtype="bfloat16", **{bars.FLOAT32: 0.79}), False),
        (made(bars.TRAIN_STEP, "1:8:v4", "GPT", dense=0.9), False),
    ],
)
def test_bars(record: Record, met: bool) -> None:
    (verdict,) = bars.verdicts([record])
    assert verdict.met is met


def test_no_bar_where_none_was_set() -> None:
    nowhere = [
        made(pattern="50%"),
        made(shape="1x2x3"),
        made(dtype="bfloat16"),
        made(STATE, "90%", "8x8", unit="B"),
    ]
    assert not bars.verdicts(nowhere)


def test_every_planned_layer_has_its_bars() -> None:
    """To nn.Linear all patterns but 50 %, to SparseProp all unstructured ones."""
    have = {(b.topic, *b.patterns, *b.against) for b in bars.BARS}
    for topic in (FORWARD, BOTH):
        for pattern in cases.PATTERNS:
            assert ((topic, pattern, NN_LINEAR) in have) is (pattern != "50%")
            assert ((topic, pattern, SPARSEPROP) in have) is (pattern in cases.UNSTRUCTURED)


def test_tables_show_what_is_met_and_missed(tmp_path: Path) -> None:
    found = results(
        tmp_path / "r.json",
        made(nn_Linear=4.7, SparseProp=2.0),
        made(pattern="50%"),
        made(bars.SPMM, torch=3.0),
        made(CALL, "2:4:v4", "1x8x8", subject=20e-6, nn_Linear=4e-6),
    )
    text = page(found).markdown()
    assert "| 90% | 4.6 | 4.70 ✓ |" in text
    assert "| 90% | 2.6 | 2.00 ✗ |" in text
    assert "| 50% | – | 5.00 |" in text
    assert "+16.0 µs ✓ | ≤ 20 µs |" in text
    assert "2 of 3 bars met (✓), 1 missed (✗)" in text
    assert "- missed: forward, 512×768×3072, 90%, 1 thread: 2.00 to SparseProp, bar ≥ 2.6" in text
    assert "256-bit" in text
    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    page(found).show(console)
    console.file.close()
    shown = console.export_text()
    assert "4.70 ✓" in shown
    assert "2.00 ✗" in shown


def test_a_disturbed_measurement_is_marked(tmp_path: Path) -> None:
    steady = made(nn_Linear=4.7)
    measured = steady.measured | {NN_LINEAR: Quartiles(4.7, 4.2, 5.2, 9)}
    found = results(tmp_path / "r.json", replace(steady, measured=measured))
    text = page(found).markdown()
    assert "| 4.70~ ✓ |" in text
    assert "1 of 1 measurements were disturbed" in text


def test_picture(tmp_path: Path) -> None:
    found = results(tmp_path / "r.json", made(), made(BOTH), made(pattern="2:4:v4"))
    assert set(points(found.records, FORWARD)) == {"unstructured", "N:M, 4 rows share columns"}
    plot(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_jobs_give_the_records_they_promise() -> None:
    scope = replace(QUICK.scope, shapes=(SMALL,), patterns=("2:4", "50%"), calls=1)
    plan = replace(QUICK, scope=scope, seconds=0.0, rounds=(1, 1))
    builders = (jobs.case_jobs, jobs.half_jobs, overhead.call_jobs)
    for builder in builders:
        for job in builder(plan):
            if "90%" in job.title:
                continue  # 51.2 of 512 entries: fine for the plan's shapes, not for this one
            records = job.run(errors := [])
            assert [record.key for record in records] == job.keys
            assert not errors


def test_state_is_counted_whole() -> None:
    layer = torch.nn.Linear(8, 4)
    layer(torch.ones(1, 8)).sum().backward()
    optimizer = torch.optim.AdamW(layer.parameters())
    optimizer.step()
    steps = sum(state["step"].nbytes for state in optimizer.state.values())
    assert state_bytes(layer, optimizer) == 4 * 36 * 4 + steps
