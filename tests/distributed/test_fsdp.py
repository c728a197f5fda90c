"""FSDP2: sharded training is bit-equal to one process, through mask changes, kills and resumes."""

from pathlib import Path

import pytest
import torch

from support import ranks
from support.ranks_course import alone, bits, masks_moved, restored, sharded

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("recipe", ["set", "rigl"])
def test_two_ranks_are_bit_equal_to_one_that_accumulates(recipe: str, tmp_path: Path) -> None:
    first, second = ranks.run(2, sharded, recipe, str(tmp_path))
    expected = alone(recipe, ranks=2).whole()
    assert bits(first) == bits(second)
    assert bits(first) == bits(expected)
    start = alone(recipe, ranks=2, steps=0).whole()
    assert masks_moved(start, {**start, **expected})


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that was killed in its step 5, after a checkpoint before step 3."""
    folder = tmp_path_factory.mktemp("killed")
    ranks.run(2, sharded, "rigl", str(folder), "2:4:v4", 5, killed=True)
    return folder


def test_a_kill_and_a_resume_change_nothing(killed: Path) -> None:
    first, _ = ranks.run(2, sharded, "rigl", str(killed))
    assert bits(first) == bits(alone("rigl", ranks=2).whole())


@pytest.mark.parametrize("world", [1, 3])
def test_another_number_of_ranks_restores_every_bit(world: int, killed: Path) -> None:
    before, after = ranks.run(world, restored, "rigl", str(killed))[0]
    assert bits(before) == bits(alone("rigl", ranks=2, steps=3).whole())
    # The mean over the same windows: equal to rounding, and masks move alike.
    expected = alone("rigl", ranks=2).whole()
    for name, tensor in expected.items():
        torch.testing.assert_close(after[name], tensor, rtol=2e-3, atol=2e-4, msg=name)
    assert not masks_moved(expected, after)
    assert masks_moved(before, after)
