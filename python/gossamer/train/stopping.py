"""Signals that end a training after the step in progress."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into an event; the second ends the process as usual."""
    stop = threading.Event()
    before: dict[signal.Signals, Any] = {}

    def restore_handlers() -> None:
        while before:
            signal.signal(*before.popitem())

    def request(number: int, frame: FrameType | None) -> None:
        stop.set()
        restore_handlers()

    # Only the main thread can handle signals.
    if threading.current_thread() is threading.main_thread():
        for name in (signal.SIGINT, signal.SIGTERM):
            before[name] = signal.signal(name, request)
    try:
        yield stop
    finally:
        restore_handlers()
