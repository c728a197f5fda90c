"""Steps of Muon on a sparse layer, beside AdamW's and beside a step of the dense layer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from bench.harness import machine
from gossamer import GossamerError, SparseLinear, timing
from gossamer.optim import Muon

NAME = "update-costs"
SHAPE, BATCH, ROUNDS = (3072, 768), 512, 15
PATTERNS = ("2:4:v4", "75%", "90%")
EVERY = (1, 5, 10)
DENSE = "dense step"

Calls = dict[str, Callable[[], Any]]


def run(
    out: Path, shape: Any = SHAPE, batch: int = BATCH, rounds: int = ROUNDS, every: Any = EVERY
) -> Path:
    """Measure all patterns; write the table and its numbers.

    Args:
        out: folder of the results.
        shape: (out_features, in_features) of the layer.
        batch: rows of the input.
        rounds: interleaved calls of each.
        every: steps between two directions of Muon.

    Returns:
        The path of the table.

    Raises:
        GossamerError: an update does not have the root mean square that it should have.
    """
    with timing.threads(1):
        found = {pattern: _steps(pattern, shape, batch, rounds, every) for pattern in PATTERNS}
    size = f"{shape[1]} → {shape[0]}, batch {batch}"
    names = list(next(iter(found.values())))[1:]
    lines = [
        f"- {machine.cpu_name()}, one thread, float32, torch {torch.__version__}; medians of "
        f"{rounds} interleaved rounds",
        f"- a layer {size}; in steps (forward and backward) of the dense layer, which take the "
        "milliseconds of the second column; Muon's cost per step is the mean over k steps",
        "",
        f"| pattern | {DENSE} | {' | '.join(names)} |",
        f"| --- | ---: |{' ---: |' * len(names)}",
    ]
    for pattern, times in found.items():
        shares = " | ".join(f"{times[name] / times[DENSE]:.2f}" for name in names)
        lines.append(f"| {pattern} | {1e3 * times[DENSE]:.1f} ms | {shares} |")
    out.mkdir(parents=True, exist_ok=True)
    record = {"cpu": machine.cpu_name(), "shape": shape, "batch": batch, "seconds": found}
    (out / f"{NAME}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path = out / f"{NAME}.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _steps(pattern: str, shape: Any, batch: int, rounds: int, every: Any) -> dict[str, float]:
    torch.manual_seed(0)
    x = torch.randn(batch, shape[1], requires_grad=True)
    calls: Calls = {
        DENSE: _gradients(nn.Linear(shape[1], shape[0]), x),
        "sparse step": _gradients(SparseLinear(shape[1], shape[0], pattern=pattern), x),
    }
    repeats = {}
    for name, steps in {"AdamW": 1, **{f"Muon, k = {k}": k for k in every}}.items():
        layer = SparseLinear(shape[1], shape[0], pattern=pattern)
        _gradients(layer, x)()
        muon = name != "AdamW"
        optimizer = (
            Muon(layer.parameters(), layer, lr=1e-3, every=steps, weight_decay=0.0)
            if muon
            else torch.optim.AdamW(layer.parameters(), lr=1e-3)
        )
        before = layer.weight.values.detach().clone()
        optimizer.step()
        moved = (layer.weight.values.detach() - before).square().mean().sqrt().item()
        if muon and abs(moved - 2e-4) > 1e-6:
            raise GossamerError(f"an update of Muon has the RMS {moved}, not 2e-4")
        for _ in range(steps - 1):
            optimizer.step()
        calls[name], repeats[name] = optimizer.step, steps
    return _times(calls, repeats, rounds)


def _gradients(layer: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        layer.zero_grad()
        layer(x).square().mean().backward()

    return step


def _times(calls: Calls, repeats: Mapping[str, int], rounds: int) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):  # the first is not counted
        for name, call in calls.items():
            steps = repeats.get(name, 1)
            start = time.perf_counter()
            for _ in range(steps):
                call()
            if turn:
                found[name].append((time.perf_counter() - start) / steps)
    return {name: median(seconds) for name, seconds in found.items()}
