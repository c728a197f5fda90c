"""Split layers compute and learn what the whole ones do, or are refused by name."""

from typing import Any

import pytest
import torch

from support import ranks, ranks_cases

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return ranks.run(2, ranks_cases.split)


@pytest.mark.parametrize("pattern", ["2:4:v4", "2:4", "75%"])
def test_split_layers_learn_like_whole_ones(pattern: str, found: list[dict[str, Any]]) -> None:
    for one in found:
        whole, parts = one[pattern]
        assert len(whole) == len(parts) == 6
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(b, a)
    held = [one[f"{pattern} nnz"] for one in found]
    density = 0.25 if pattern == "75%" else 0.5
    assert [sum(pair) for pair in zip(*held, strict=True)] == [2048 * density, 1024 * density]


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("refused 2:4:v32", "PatternError: SparseLinear(in_features=32, out_features=32"),
        ("refused block 4x4 50%", "PatternError: SparseLinear(in_features=32, out_features=32"),
        ("dense", "PatternError: Linear(in_features=8"),
        ("DTensor", "DTypeError: x is a DTensor"),
    ],
)
def test_what_cannot_be_split_is_refused(case: str, text: str, found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one[case].startswith(text), one[case]
        assert "densify()" in one[case]
