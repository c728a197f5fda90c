"""Schedules: their ends, their shape, and what they refuse."""

import itertools
import math
import subprocess
import sys

import pytest

from gossamer.errors import DTypeError, ScheduleError
from gossamer.schedules import Constant, Cosine, Cubic, Linear


@pytest.mark.parametrize("kind", [Linear, Cubic, Cosine])
def test_a_schedule_holds_its_ends_and_runs_between_them(kind: type[Linear]) -> None:
    schedule = kind(3.0, -1.0, begin_step=10, end_step=30)
    assert [schedule(step) for step in (0, 10)] == [3.0, 3.0]
    assert [schedule(step) for step in (30, 10**9)] == [-1.0, -1.0]
    values = [schedule(step) for step in range(10, 31)]
    assert all(a > b for a, b in itertools.pairwise(values))


@pytest.mark.parametrize(
    ("kind", "quarter"),
    [(Linear, 0.75), (Cubic, 0.75**3), (Cosine, (1 + math.cos(math.pi / 4)) / 2)],
)
def test_a_quarter_of_the_way(kind: type[Linear], quarter: float) -> None:
    assert kind(1.0, 0.0, begin_step=4, end_step=8)(5) == pytest.approx(quarter, rel=1e-15)


def test_a_schedule_of_no_length_is_a_jump() -> None:
    schedule = Linear(1.0, 2.0, begin_step=5, end_step=5)
    assert (schedule(4), schedule(5)) == (1.0, 2.0)


def test_a_constant_is_constant() -> None:
    assert {Constant(2)(step) for step in (0, 7, 10**6)} == {2.0}


def test_schedules_are_values() -> None:
    assert Linear(0, 1, 2, 3) == Linear(0, 1, 2, 3) != Cubic(0, 1, 2, 3)


def test_what_is_refused() -> None:
    with pytest.raises(ScheduleError, match="begin_step=9"):
        Linear(0, 1, begin_step=9, end_step=8)
    with pytest.raises(ScheduleError, match="finite"):
        Cubic(math.nan, 1, begin_step=0, end_step=8)
    with pytest.raises(DTypeError, match="a number"):
        Constant("1")  # type: ignore[arg-type]


@pytest.mark.process
def test_no_torch_is_needed() -> None:
    code = "import sys, gossamer.schedules; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
