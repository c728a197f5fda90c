import gc
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import ArgumentError
from gossamer.timing import Timing, interleaved, rotation, threads


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=30))
def test_quartiles_are_those_of_numpy(samples: list[float]) -> None:
    timing = Timing.from_samples(samples)
    expected = np.percentile(samples, [25, 50, 75])
    got = [timing.quartiles[0], timing.median, timing.quartiles[1]]
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    assert timing.samples == tuple(samples)


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="at least one"):
        Timing.from_samples([])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_each_name_has_each_place_equally_often(count: int) -> None:
    names = [str(i) for i in range(count)]
    rounds = [rotation(names, turn) for turn in range(2 * count)]
    assert all(sorted(order) == names for order in rounds)
    for place in range(count):
        assert sorted(order[place] for order in rounds) == sorted(names * 2)


def test_the_neighbours_change_from_lap_to_lap() -> None:
    followers = {pair for turn in range(6) for pair in pairwise(rotation("abc", turn))}
    assert len(followers) == 6


def test_interleaved_calls_in_turn_and_measures_only_after_warmup() -> None:
    calls: list[str] = []
    timings = interleaved(
        {name: lambda name=name: calls.append(name) for name in "abc"}, repeats=4, warmup=2
    )
    assert list(timings) == ["a", "b", "c"]
    assert {len(timing.samples) for timing in timings.values()} == {4}
    rounds = [calls[i : i + 3] for i in range(0, 18, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert rounds[2:] == [rotation("abc", turn) for turn in range(4)]


def test_interleaved_measures_seconds() -> None:
    timings = interleaved({"slow": lambda: time.sleep(0.02), "quick": lambda: None}, 3, 0)
    assert timings["slow"].median >= 0.02
    assert timings["quick"].median < timings["slow"].median


def test_garbage_collection_is_off_inside_and_back_after_an_error() -> None:
    seen: list[bool] = []

    def fail() -> None:
        seen.append(gc.isenabled())
        raise RuntimeError("stop")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="stop"):
        interleaved({"fail": fail}, 1, 0)
    assert seen == [False]
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("fns", "repeats", "warmup"), [({}, 1, 0), ({"a": int}, 0, 0), ({"a": int}, 1, -1)]
)
def test_interleaved_rejects(fns: dict[str, type], repeats: int, warmup: int) -> None:
    with pytest.raises(ArgumentError, match="interleaved got"):
        interleaved(fns, repeats, warmup)


def test_threads_are_set_and_set_back() -> None:
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    with threads(other) as number:
        assert number == torch.get_num_threads() == other
    assert torch.get_num_threads() == before
    with pytest.raises(RuntimeError, match="stop"), threads(other):
        raise RuntimeError("stop")
    assert torch.get_num_threads() == before
    with threads(None) as number:
        assert number == before


def test_threads_rejects_none_at_all() -> None:
    with pytest.raises(ArgumentError, match="at least 1"), threads(0):
        pass
