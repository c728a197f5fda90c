"""A pytest plugin that puts gossamer.ot.pot_backend in the place of POT's functions.

Each function of the package replaces the one of the same name in `ot`, `ot.bregman`,
`ot.unbalanced` and `ot.solvers`; everything else (data, distances, the other solvers) stays POT's.
The record of every test goes to the file that GOSSAMER_POT_RECORD names: its outcome, the message
of a failure, and which of the functions it called.
"""

import functools
import importlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gossamer.ot import pot_backend

called: set[str] = set()


def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        called.add(name)
        return function(*args, **kwargs)

    return call


def substitute() -> list[str]:
    """Replace POT's functions; return the names that were replaced."""
    replaced = []
    for space in ("", "bregman", "unbalanced", "solvers"):
        ours = getattr(pot_backend, space) if space else pot_backend
        theirs = importlib.import_module(f"ot.{space}" if space else "ot")
        for name in ours.__all__:
            function = getattr(ours, name)
            if callable(function) and hasattr(theirs, name):
                setattr(theirs, name, watched(name, function))
                replaced.append(f"{theirs.__name__}.{name}")
    return replaced


REPLACED = substitute()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    called.clear()
    yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.when != "call" and report.outcome == "passed":
        return
    message = "" if call.excinfo is None else f"{call.excinfo.typename}: {call.excinfo.value}"
    record = {
        "test": item.nodeid.rpartition("test/")[2],
        "outcome": report.outcome,
        "called": sorted(called),
        "message": message,
    }
    with Path(os.environ["GOSSAMER_POT_RECORD"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
