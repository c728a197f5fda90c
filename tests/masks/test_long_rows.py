"""The k largest of a row that is long enough to be sampled."""

import math

import pytest
import torch

from gossamer.masks import top


@pytest.mark.parametrize("kind", ["normal", "ties", "sorted", "mostly zero", "nan"])
def test_a_long_row_matches_a_stable_sort(kind: str) -> None:
    """A sample brackets the k-th value of a long row; whatever it misses must not show."""
    random = torch.Generator().manual_seed(len(kind))
    for count in (0, 1, 500, 20_000, 39_990, 40_000):
        score = torch.randn(1, 40_000, generator=random)
        if kind == "ties":
            score = (3 * score).round()
        elif kind == "sorted":
            score = score.sort().values
        elif kind == "mostly zero":
            score *= torch.rand(1, 40_000, generator=random) < 0.1
        elif kind == "nan":
            score[0, ::7] = torch.nan
        kept = torch.zeros(40_000, dtype=torch.bool)
        ranked = score[0].nan_to_num(nan=math.inf)  # NaN before all
        kept[torch.sort(ranked, descending=True, stable=True).indices[:count]] = True
        assert torch.equal(top(score, count)[0], kept)
