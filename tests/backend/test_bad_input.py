"""Every bad call raises one clear error of the expected class, writes nothing and kills nothing.

The cases run in worker processes, many in each, so that a signal is seen and costs one case only.
"""

import json
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from support import SUPPORT
from support.bad_input_cases import CASES as KERNEL_CASES
from support.bad_input_cases import Case
from support.bad_input_model_cases import CASES as MODEL_CASES

pytestmark = [pytest.mark.slow, pytest.mark.process]

CASES = KERNEL_CASES + MODEL_CASES
PATIENCE = 120.0  # seconds without an answer; a sanitizer needs ten of them to import torch

# Signs that an error leaked out of the machinery instead of being raised on purpose.
LEAKS = ("Invoked with", "incompatible function", "incompatible constructor", "pybind", "std::",
         "terminate called", "Traceback")  # fmt: skip


def run_cases(cases: list[Case]) -> dict[str, dict[str, Any]]:
    """What became of each. A worker that dies or hangs is replaced for the cases behind it."""
    outcomes: dict[str, dict[str, Any]] = {}
    left = list(cases)
    while left:
        done, end = run_worker(left)
        outcomes |= done
        if len(done) == len(left):
            break
        fallen = left[len(done)]
        outcomes[fallen.name] = {"crashed": end}
        left = left[len(done) + 1 :]
    return outcomes


def run_worker(cases: list[Case]) -> tuple[dict[str, dict[str, Any]], str]:
    """The outcomes in order, up to the case that the worker did not survive, and its end."""
    worker = subprocess.Popen(
        [sys.executable, str(SUPPORT / "bad_input_worker.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    assert worker.stderr is not None
    printed: list[str] = []
    stderr = worker.stderr
    drain = threading.Thread(target=lambda: printed.append(stderr.read()))
    drain.start()
    worker.stdin.write(json.dumps([[case.name, case.code] for case in cases]))
    worker.stdin.close()
    done: dict[str, dict[str, Any]] = {}
    hung = False
    while True:
        watchdog = threading.Timer(PATIENCE, worker.kill)
        watchdog.start()
        name, answer = worker.stdout.readline(), worker.stdout.readline()
        hung = not watchdog.is_alive()
        watchdog.cancel()
        if not answer:
            break
        done[json.loads(name)] = json.loads(answer)
    code = worker.wait()
    drain.join()
    worker.stdout.close()
    worker.stderr.close()
    text = "hung" if hung else f"signal {-code}" if code < 0 else f"exit status {code}"
    return done, f"{text}: {''.join(printed)[-800:]}"


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    return run_cases(CASES)


def test_the_list_is_long_and_its_names_differ() -> None:
    assert len(CASES) >= 150
    assert len({case.name for case in CASES}) == len(CASES)
    assert len({case.code for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, outcomes: dict[str, dict[str, Any]]) -> None:
    outcome = outcomes[case.name]
    assert "crashed" not in outcome, outcome["crashed"]
    message = outcome["message"]
    assert outcome["raised"], "nothing was raised"
    assert outcome["raised"][0] == case.error, f"{outcome['raised']}: {message}"
    for word in case.words:
        assert word in message, f"{word!r} is not in: {message}"
    assert not any(leak in message for leak in LEAKS), message
    assert len(message) < 1500, message
    assert not outcome["changed"], f"the call changed {outcome['changed']}"
    assert outcome["noise"] == "", f"the call printed {outcome['noise']}"


def test_a_crash_and_a_change_are_seen() -> None:
    cases = [
        Case("fine", "K.spmm(None, values, s)", "DTypeError", ()),
        Case("killed", "os.kill(os.getpid(), 11)", "", ()),
        Case("no error", "x.shape", "", ()),
        Case("left", "os._exit(0)", "", ()),
        Case("changed", "x[0, 0] += 1", "", ()),
        Case("wrote", "Path('file').write_text('')", "", ()),
        Case("loud", "print('hello')", "", ()),
        Case("wrong case", "nonsense; x.shape", "", ()),
    ]
    outcomes = run_cases(cases)
    assert outcomes["fine"]["raised"][0] == "DTypeError"
    assert outcomes["killed"]["crashed"].startswith(("signal 11", "signal 6"))  # 6: a sanitizer
    assert outcomes["no error"]["raised"] == []
    assert outcomes["left"]["crashed"].startswith("exit status 0")
    assert outcomes["changed"]["changed"] == ["x"]
    assert outcomes["wrote"]["changed"] == ["file file"]
    assert outcomes["loud"]["noise"] == "hello\n"
    assert outcomes["wrong case"]["raised"] == ["BadCase"]
