"""Wild calls, a few of the ten thousand of `python tests/wild`, and whether its eyes are open."""

import time
from pathlib import Path

import pytest
import torch

import gossamer
from wild import calls, run
from wild.targets import Target, targets


@pytest.mark.slow
@pytest.mark.process
def test_few_wild_calls_fail_unclearly() -> None:
    tally = run.run(300, seed=1)
    assert tally.calls > 220
    assert not tally.signals, tally.table()
    assert not tally.hangs, tally.table()
    # The bar of ten thousand is 1 %; three hundred of them may by chance have some more.
    assert tally.endings["unclear"] <= 0.03 * tally.calls, tally.table()


def test_the_public_names_are_found() -> None:
    names = {target.name for target in targets()}
    assert len(names) > 300
    assert {"gossamer.sparsify", "gossamer.nn.MaskedLinear", "gossamer.SparseWeight.set_mask",
            "gossamer.recipes.GMP.prepare", "gossamer.codes.top_k"} <= names  # fmt: skip


def test_errors_are_told_apart() -> None:
    def verdict(call: object, *args: object) -> str:
        return calls.verdict_of(call, list(args), {})["verdict"]

    assert verdict(gossamer.parse_pattern, "2:4") == "returned"
    assert verdict(gossamer.parse_pattern, 5) == "clear"
    assert verdict(gossamer.parse_pattern) == "clear"  # Python's own, of the call
    assert verdict(gossamer.codes.losses.at_levels, None, [1]) == "unclear"  # AttributeError
    assert verdict(torch.ones, "a") == "unclear"  # of another library, without our words


@pytest.mark.slow
@pytest.mark.process
def test_a_signal_and_a_hang_are_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys, time\n"
        "print(json.dumps({'ready': 3}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    print(json.dumps({'name': line.strip()}), flush=True)\n"
        "    if line == '1\\n': os.kill(os.getpid(), 11)\n"
        "    if line == '2\\n': time.sleep(60)\n"
        "    print(json.dumps({'verdict': 'returned', 'error': '', 'text': ''}), flush=True)\n"
    )
    monkeypatch.setattr(run, "WORKER", script)
    monkeypatch.setattr(run, "PATIENCE", 1.0)
    start = time.monotonic()
    tally = run.run(4, seed=0)
    assert time.monotonic() - start < 30
    assert tally.signals == ["#1 1: -11"]
    assert tally.hangs == ["#2 2"]
    assert tally.endings["returned"] == 2
    assert not tally.holds


def test_a_call_is_the_same_again() -> None:
    target = Target("gossamer.codes.top_k", gossamer.codes.top_k)
    assert calls.one_call(target, 7) == calls.one_call(target, 7)
