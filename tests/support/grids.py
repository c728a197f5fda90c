"""Grids of test cases, of which `make check` runs a part that covers every value."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest


def covering(*axes: Sequence[Any], whole: int = 1) -> list[Any]:
    """All combinations of values; the quick ones hold every value of every axis, the rest is slow.

    Args:
        axes: the values of each argument of `pytest.mark.parametrize`.
        whole: so many first axes are quick in all their combinations.

    Returns:
        `pytest.param` of each combination.
    """
    joined: list[list[tuple[Any, ...]]] = [list(product(*axes[:whole]))]
    joined += [[(value,) for value in axis] for axis in axes[whole:]]
    turns = range(max(len(axis) for axis in joined))
    # Each round of a shorter axis begins one further on, so that other values meet.
    quick = {
        tuple((turn + j * (turn // len(axis))) % len(axis) for j, axis in enumerate(joined))
        for turn in turns
    }
    found = []
    for places in product(*(range(len(axis)) for axis in joined)):
        values = [v for axis, at in zip(joined, places, strict=True) for v in axis[at]]
        found.append(pytest.param(*values, marks=() if places in quick else pytest.mark.slow))
    return found
