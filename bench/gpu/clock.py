"""Times of alternating calls on a device, and whether two results are the same product."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

# |out - exact| / |exact| of a product that is summed in float, or in the dtype if it is wider.
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5, torch.float64: 1e-12}

Call = Callable[[], object]


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(calls: Mapping[str, Call], device: str, rounds: int) -> dict[str, float]:
    """Return the median seconds of each call; the calls take turns, after one round of warming.

    Args:
        calls: what to time, by name.
        device: "cuda" or "cpu".
        rounds: how often each runs.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    synchronize(device)
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(_once(call, device))
    return {name: statistics.median(times) for name, times in found.items()}


def _once(call: Call, device: str) -> float:
    if device != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    event: Any = torch.cuda.Event  # without annotations
    first, last = event(enable_timing=True), event(enable_timing=True)
    first.record()
    call()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def error(out: Tensor, exact: Tensor) -> float:
    """Return |out - exact| / |exact| in float64."""
    size = float(exact.double().norm())
    return float((out.double() - exact.double()).norm()) / max(size, 1e-300)
