"""Time of a training step of a GPT's blocks of width 768, beside dense."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.harness import machine
from bench.harness.results import write_text
from bench.harness.tables import Cell, Grid, Page
from experiments.pixelated.training import (
    DENSE,
    METHODS,
    matrices,
    network,
    optimizer_of,
    train_step,
)
from gossamer import timing
from gossamer.timing import interleaved
from gossamer.train import GPTConfig

VOCABULARY = 256


def times(
    out: Path, width: int = 768, depth: int = 4, batch: int = 2, context: int = 256, rounds: int = 9
) -> Path:
    """Measure steps in turn on one thread; write the table.

    Args:
        out: folder of the result.
        width: features, a multiple of 128.
        depth: blocks.
        batch: windows per step.
        context: tokens per window.
        rounds: steps of each model.

    Returns:
        The Markdown file.
    """
    config = GPTConfig(VOCABULARY, context, width, depth, 12)
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randint(VOCABULARY, (batch, context), generator=random) for _ in range(2))
    with timing.threads(1):
        models = {method: network(method, config, 0).train() for method in METHODS}
        optimizers = {method: optimizer_of(model, 1e-4) for method, model in models.items()}
        calls = {
            method: lambda method=method: train_step(models[method], optimizers[method], x, y)
            for method in METHODS
        }
        found = interleaved(calls, repeats=rounds, warmup=2)
    dense = found[DENSE].median
    whole = depth * 12 * width**2
    table = [
        [
            Cell(method), Cell(f"{matrices(models[method]) / whole:.1%}"),
            Cell(f"{1e3 * one.median:.0f} ms"), Cell(f"{dense / one.median:.2f}×"),
        ]
        for method, one in found.items()
    ]  # fmt: skip
    lines = [
        f"{machine.cpu_name()}, one thread, float32; "
        + ", ".join(f"{who} {number}" for who, number in machine.versions(()).items()),
        f"GPT of width {width}, depth {depth}, {batch}×{context} tokens of {VOCABULARY}; a step is "
        "loss, gradients, clipping and fused AdamW; medians of interleaved steps",
        "weights: of the layers of the blocks, of the dense ones; embedding and head are dense",
    ]
    grid = Grid("A training step", ["layers", "weights", "step", "faster"], table)
    path = out / "pixelated-times.md"
    write_text(path, Page([grid], lines, f"{len(table)} models").markdown())
    return path
