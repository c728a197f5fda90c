"""Runs wild calls in worker processes, and counts how they ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).resolve().parent / "worker.py"
PATIENCE = 20.0  # seconds per call
START = 180.0  # seconds to import torch
UNCLEAR_SHARE = 0.01


@dataclass
class Tally:
    """How the calls ended.

    Attributes:
        endings: number of calls by verdict.
        signals: the calls that ended their process, with its status.
        hangs: the calls that took longer than `PATIENCE`.
        unclear: for each kind of unclear error its number and an example.
    """

    endings: Counter[str] = field(default_factory=Counter)
    signals: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    unclear: dict[str, list[str]] = field(default_factory=dict)
    names: Counter[str] = field(default_factory=Counter)

    @property
    def calls(self) -> int:
        """Number of calls that were made."""
        return sum(self.endings.values()) - self.endings["not built"]

    @property
    def holds(self) -> bool:
        """Whether the bar holds: no signal, no hang, less than 1 % unclear errors."""
        few = self.endings["unclear"] < UNCLEAR_SHARE * max(self.calls, 1)
        return not self.signals and not self.hangs and few

    def add(self, name: str, number: int, outcome: dict[str, str]) -> None:
        """Count one call."""
        self.endings[outcome["verdict"]] += 1
        if outcome["verdict"] == "unclear":
            kind = f"{outcome['error']} at {outcome['text'].split(': ')[0]}"
            self.unclear.setdefault(kind, []).append(f"#{number} {name}: {outcome['text']}")
            self.names[name] += 1

    def table(self) -> str:
        """Return what a reader wants to know, as text."""
        kinds = sorted(self.unclear.items(), key=lambda item: -len(item[1]))
        lines = [f"{len(found):5d}  {kind}\n         {found[0]}" for kind, found in kinds]
        lines += [f"signal {text}" for text in self.signals]
        lines += [f"hang   {text}" for text in self.hangs]
        share = 100 * self.endings["unclear"] / max(self.calls, 1)
        rows = [
            ("calls", self.calls, ""),
            ("returned", self.endings["returned"], ""),
            ("refused clearly", self.endings["clear"], ""),
            ("unclear errors", self.endings["unclear"], f"{share:.2f} %, bar: below 1 %"),
            ("signals", len(self.signals), "bar: 0"),
            (f"hangs over {PATIENCE:.0f} s", len(self.hangs), "bar: 0"),
            ("object not built", self.endings["not built"], "not counted"),
        ]
        lines += [f"{what:20}{count:8d}   {bar}".rstrip() for what, count, bar in rows]
        return "\n".join([*lines, "the bar holds" if self.holds else "the bar does not hold"])


class _Worker:
    def __init__(self, seed: int) -> None:
        path = os.pathsep.join(p for p in sys.path if p)
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), str(seed)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.hung = False
        self.read(START)

    def read(self, patience: float) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        watchdog = threading.Timer(patience, self._kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        return json.loads(line) if line.endswith("\n") else None

    def ask(self, number: int) -> tuple[str, dict[str, Any] | None]:
        assert self.process.stdin is not None
        print(number, file=self.process.stdin, flush=True)
        said = self.read(PATIENCE)
        name = "?" if said is None else str(said["name"])
        return name, None if said is None else self.read(PATIENCE)

    def end(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        status = self.process.wait()
        self.process.stdout.close()
        return status

    def _kill(self) -> None:
        self.hung = True
        self.process.kill()


def run(calls: int, seed: int, first: int = 0, told: float = 0.0) -> Tally:
    """Make calls and count how they ended.

    Args:
        calls: how many; they go round over all public names.
        seed: the calls of a seed are always the same.
        first: number of the first call.
        told: seconds between two lines of progress, 0 for none.
    """
    tally = Tally()
    worker = None
    last = time.monotonic()
    for number in range(first, first + calls):
        worker = worker or _Worker(seed)
        name, outcome = worker.ask(number)
        if outcome is not None:
            tally.add(name, number, outcome)
        else:
            tally.endings["ended"] += 1
            hung, status = worker.hung, worker.end()
            text = f"#{number} {name}"
            (tally.hangs if hung else tally.signals).append(text if hung else f"{text}: {status}")
            worker = None
        if told and time.monotonic() - last > told:
            last = time.monotonic()
            print(number - first + 1, dict(tally.endings), flush=True)
    if worker is not None:
        worker.end()
    return tally
