"""Selection where whole registers are chosen by a mask, and where it writes past the caches."""

import math

import pytest
import torch
from torch import Tensor

from gossamer import backend
from gossamer.backend import Structure
from gossamer.masks.n_of_m import select_nm


def same(a: tuple[Tensor, Structure], b: tuple[Tensor, Structure]) -> bool:
    bits = torch.equal(a[0].view(torch.int32), b[0].view(torch.int32))
    return bits and torch.equal(a[1].indices, b[1].indices)


@pytest.mark.parametrize("isa", sorted({backend.isas()[0], "emulated"}))
@pytest.mark.parametrize("pattern", ["7:8", "1:4"])
def test_more_values_than_caches_hold(pattern: str, isa: str) -> None:
    weight = torch.randn(8200 if pattern == "1:4" else 2400, 4096)
    backend.use_isa("portable")
    want = select_nm(weight, pattern)
    backend.use_isa(isa)
    got = select_nm(weight, pattern)
    assert same(got, want)
    # Memory that begins between two lines of a cache.
    values = torch.zeros(len(want[0]) + 2)
    assert same(select_nm(weight, pattern, (values[1:-1], got[1])), want)
    assert values[0] == values[-1] == 0


@pytest.mark.parametrize("isa", backend.isas())
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "2:8", "1:8", "4:8", "1:16", "2:16", "9:16"])
@pytest.mark.parametrize("vector", ["", ":v4"])
def test_nan_and_ties_in_full_registers(isa: str, pattern: str, vector: str) -> None:
    backend.use_isa(isa)
    torch.manual_seed(0)
    for columns in (16, 48, 272, 512):
        weight = (torch.randn(20, columns) * 3).round() / 4
        weight[torch.rand(20, columns) < 0.1] = math.nan
        weight[torch.rand(20, columns) < 0.1] = -math.inf
        weight[:4] = 0.0
        values, structure = select_nm(weight, pattern + vector)
        # The same in float64, which has a path of its own.
        wide, want = select_nm(weight.double(), pattern + vector)
        assert torch.equal(structure.indices, want.indices)
        torch.testing.assert_close(values.double(), wide, rtol=0, atol=0, equal_nan=True)
