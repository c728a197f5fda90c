"""What grouped rows cost a layer: outputs that are gathered, and an order that was folded away."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import gossamer
from bench.harness import machine
from gossamer import timing
from gossamer.masks import group_rows
from gossamer.nn import PermutedLinear
from gossamer.pruning import group_hidden

NAME = "row-groups-times"
SHAPES = ((512, 768, 3072), (512, 3072, 768))
VECTORS = (8, 16, 64)
ROUNDS = 21


def times(out: Path, shapes: Any = SHAPES, vectors: Any = VECTORS, rounds: int = ROUNDS) -> Path:
    """Measure layers of 2:4 with rows as they are, folded and gathered; write the table.

    Args:
        out: folder of the result.
        shapes: (batch, in_features, out_features).
        vectors: rows that share their columns.
        rounds: interleaved calls of each layer.

    Returns:
        The path of the table.
    """
    lines = [
        f"- {machine.cpu_name()}, one thread, float32; medians of {rounds} interleaved calls",
        "- ratios are to the layer with rows as they are; grouping: seconds of `group_rows`, once",
        "",
        "| batch×in×out | pattern | forward | folded | gathered | fwd + bwd | folded | gathered "
        "| grouping |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    with timing.threads(1):
        lines += [_line(s, f"2:4:v{vector}", rounds) for s in shapes for vector in vectors]
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{NAME}.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _line(shape: tuple[int, int, int], pattern: str, rounds: int) -> str:
    batch, cols, rows = shape
    torch.manual_seed(0)
    x = torch.randn(batch, cols)
    network = nn.Sequential(nn.Linear(cols, rows), nn.ReLU(), nn.Linear(rows, cols))
    folded = copy.deepcopy(network)
    group_hidden(folded, pattern, x[:1])
    plain: Any = gossamer.sparsify(copy.deepcopy(network), pattern)
    grouped: Any = gossamer.sparsify(folded, pattern)
    front: Any = network[0]
    layers: list[nn.Module] = [
        plain[0],
        grouped[0],
        PermutedLinear.from_dense(front, pattern),
    ]
    start = time.perf_counter()
    group_rows(front.weight.detach().abs(), pattern)
    seconds = time.perf_counter() - start
    cells = []
    for call in (_forward, _step):
        found = _medians([call(layer, x) for layer in layers], rounds)
        cells += [f"{1e3 * found[0]:.2f} ms", *(f"{one / found[0]:.2f}" for one in found[1:])]
    size = "×".join(map(str, shape))
    return f"| {size} | {pattern} | {' | '.join(cells)} | {seconds:.1f} s |"


def _forward(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    def call() -> None:
        with torch.no_grad():
            layer(x)

    return call


def _step(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    given = x.clone().requires_grad_()
    grad = torch.randn_like(layer(x).detach())

    def call() -> None:
        torch.autograd.backward(layer(given), grad)

    return call


def _medians(calls: list[Callable[[], None]], rounds: int) -> list[float]:
    found: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 2):  # the first two are not counted
        for call, seconds in zip(calls, found, strict=True):
            start = time.perf_counter()
            call()
            if turn > 1:
                seconds.append(time.perf_counter() - start)
    return [median(seconds) for seconds in found]
