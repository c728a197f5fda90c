"""A training small enough for a test, and what it computed."""

import argparse
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from gossamer.train import Run, TrainConfig, load_checkpoint, read_metrics
from gossamer.train.checkpoint import CHECKPOINT
from gossamer.train.metrics import METRICS

TEXT = str(Path(argparse.__file__))
Step = Callable[[Run, Tensor, Tensor], float]
QUIET = Console(quiet=True)
TINY = TrainConfig(
    runs=("dense", "2:4:v4", "75%"), steps=12, batch=4, context=16, width=32, depth=2, heads=2,
    threads=1, data=TEXT, eval_every=5, checkpoint_every=0,
)  # fmt: skip


def interrupt_at(
    monkeypatch: pytest.MonkeyPatch, step: int, name: str, number: signal.Signals = signal.SIGINT
) -> None:
    """Let a signal arrive as the run of that name begins that step."""
    take: Step = Run.step

    def interrupted(run: Run, inputs: Tensor, targets: Tensor) -> float:
        if len(run.step_seconds) + 1 == step and run.name == name:
            signal.raise_signal(number)
        return take(run, inputs, targets)

    monkeypatch.setattr(Run, "step", interrupted)


def computed(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All that a training computed, without the times it took."""
    state = load_checkpoint(out / CHECKPOINT)
    del state["config"]["checkpoint_every"]
    for run in state["runs"].values():
        del run["step_seconds"]
    times = ("seconds", "tokens_per_second")
    rows = [
        {key: value for key, value in row.items() if key not in times}
        for row in read_metrics(out / METRICS)
    ]
    return state, rows


def fingerprint(out: Path) -> Any:
    """All that a training computed, to the bit."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.dtype, value.shape, value.reshape(-1).view(torch.uint8).numpy().tobytes()
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    state, rows = computed(out)
    return plain(state), rows
