"""The digits experiment: budgets, fairness, files. No test depends on who wins."""

import gc
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

pytest.importorskip("sklearn")

from experiments.digits import page, study
from experiments.digits.study import QUICK, Scope, contests, flops, parameters
from experiments.digits.training import (
    DENSE,
    GRADUAL,
    LASSO,
    LENET,
    MAGNITUDE,
    MLP,
    PENALISED,
    SMALL,
    STRENGTHS,
    UNBIASED,
    WGSEF,
    Course,
    build,
    cut,
    hidden,
    split_digits,
    train,
    widths_of,
)
from gossamer.errors import CheckpointError

COURSE = Course(epochs=2, tuning=1, batch=500)


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A garbage collection before each timing takes longer than all that is timed here."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def silent() -> Console:
    return Console(file=StringIO())


def test_the_split_has_no_image_twice() -> None:
    parts = split_digits()
    assert [len(x) for x, _ in parts] == [1000, 297, 500]
    assert all(torch.equal(a, b) for a, b in zip(parts.test, split_digits().test, strict=True))
    images = torch.cat([x for x, _ in parts]).flatten(1)
    assert len(images) == 1797
    assert images.max() == 1


def test_everybody_may_try_equally_often() -> None:
    assert {len(strengths) for strengths in STRENGTHS.values()} == {Scope().trials}
    assert set(PENALISED) < set(STRENGTHS)


def test_cutting_keeps_the_largest() -> None:
    model = build(LENET)
    layers = hidden(model)
    norms = [m.weight.detach().flatten(1).norm(dim=1) for m in layers]
    cut(layers, [4, 8, 16])
    for layer, norm, k in zip(layers, norms, (4, 8, 16), strict=True):
        alive = layer.weight.flatten(1).any(1)
        assert set(alive.nonzero().ravel().tolist()) == set(norm.topk(k).indices.tolist())
        assert layer.bias is not None
        assert torch.equal(layer.bias != 0, alive)


@pytest.mark.parametrize("method", STRENGTHS)
@pytest.mark.parametrize("network", [MLP, LENET])
def test_budgets_are_kept_to_the_end(network: str, method: str) -> None:
    data = split_digits()
    strength = STRENGTHS[method][0]
    found = train(network, method, 0.25, strength, 0, COURSE, data)
    full, budget = widths_of(network, 1.0), widths_of(network, 0.25)
    wanted = full if method == DENSE else budget
    assert all(kept <= most for kept, most in zip(found.kept, wanted, strict=True))
    if method in (DENSE, SMALL, MAGNITUDE, GRADUAL):
        assert found.kept == wanted
    if method == MAGNITUDE:
        assert found.left == full
    if method == GRADUAL:
        assert found.left == budget
    assert 0 <= found.test <= 1


def test_a_training_repeats_itself() -> None:
    first, again = (
        train(LENET, UNBIASED, 0.25, 0.01, 1, COURSE, split_digits())._asdict() for _ in range(2)
    )
    for name in ("validation", "test", "at_cut", "left", "kept"):
        assert first[name] == again[name]


def test_sizes_are_counted() -> None:
    model = build(MLP)
    assert parameters(model) == 64 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10
    assert flops(model) == 2 * (64 * 256 + 256 * 128 + 128 * 10)
    assert flops(build(LENET)) == 2 * (64 * 9 * 16 + 16 * 9 * 16 * 32 + 128 * 64 + 64 * 10)


def test_a_run_can_be_stopped_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(QUICK, cells=((MLP, 0.25),), course=COURSE)
    calls, real = [], study.train

    def counted(*given: Any) -> Any:
        calls.append(given[:5])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(study, "train", counted)
    assert study.run(tmp_path, True, False, silent(), plan) == study.INTERRUPTED
    path = tmp_path / f"{study.NAME}.json"
    assert len(json.loads(path.read_text())["runs"]) == 3
    assert study.run(tmp_path, True, True, silent(), plan) == 0
    content = json.loads(path.read_text())
    assert content["complete"]
    assert calls[3] == calls[4]
    assert len(content["runs"]) == len(calls) - 1 == 2 * len(list(contests(plan)))
    assert len(content["chosen"]) == len(content["runs"])
    for row in content["chosen"]:
        if row["method"] not in (DENSE, SMALL):
            assert row["parameters"] < row["whole_parameters"]
            assert row["flops"] < row["whole_flops"]
    text = path.with_suffix(".md").read_text()
    assert "MLP 64-256-128-10, 1/4 of each hidden layer" in text
    assert f"| {WGSEF} |" in text
    assert "64+32" in text
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(CheckpointError, match="other settings"):
        study.run(tmp_path, True, True, silent(), replace(plan, repeats=4))
    path.write_text("{")
    with pytest.raises(CheckpointError, match="holds no results"):
        study.run(tmp_path, True, True, silent(), plan)


def row(method: str, test: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "network": MLP, "share": 0.25, "method": method, "strength": 0.1, "seed": seed,
        "test": test, "at_cut": 0.5, "left": [9, 8], "kept": [2, 1],
    } | more  # fmt: skip


def test_sentences_say_who_loses() -> None:
    rows = [
        *(row(LASSO, 0.90 + d, seed) for seed, d in enumerate((-0.01, 0, 0.01))),
        *(row(UNBIASED, 0.95 + d, seed) for seed, d in enumerate((-0.01, 0, 0.01))),
        *(row(WGSEF, 0.945 + d, seed) for seed, d in enumerate((-0.01, 0, 0.01))),
    ]
    _, line, _ = page.sentences(rows)
    assert f"best is {UNBIASED} (95.0%)" in line
    assert f"within one standard deviation: {WGSEF} (-0.5)" in line
    assert line.endswith(f"points behind: {LASSO} (-5.0)")
    rows = [row(UNBIASED, 0.5), row(LASSO, 0.9)]
    _, line, _ = page.sentences(rows)
    assert f"best is {LASSO}" in line
    assert f"points behind: {UNBIASED} (-40.0)" in line
    assert len(page.sentences([])) == 1
