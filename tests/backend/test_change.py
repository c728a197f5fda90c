"""Matching two structures, and moving values from one to the other, against dense copies."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import gossamer
from gossamer import backend
from gossamer.backend import Structure
from gossamer.errors import ArgumentError, DTypeError, ShapeError
from gossamer.masks import random_structure
from support import oracle
from support.grids import covering

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def dense_origins(old: Structure, new: Structure) -> Tensor:
    """The oracle of `match`: entry numbers written into a dense matrix of panels and read back."""
    layout = old.layout
    place = torch.full((layout.rows * layout.cols,), -1)
    place[backend.coordinates(old)[:: layout.vector]] = torch.arange(len(old.indices))
    return place[backend.coordinates(new)[:: layout.vector]].int()


def dense_move(values: Tensor, old: Structure, new: Structure) -> Tensor:
    moved: Tensor = backend.gather(backend.scatter(values, old), new)
    return moved


@pytest.mark.parametrize(("pattern", "dtype"), covering(oracle.PATTERNS, DTYPES))
def test_entries_are_matched_and_moved_by_coordinate(pattern: str, dtype: torch.dtype) -> None:
    shape = (48, 640) if pattern != "3:5" else (48, 645)
    old, new = (random_structure(shape, pattern, seed) for seed in (1, 2))
    origins = backend.match(old, new)
    assert torch.equal(origins, dense_origins(old, new))
    assert (origins >= 0).any()
    assert (origins < 0).any()
    values = torch.randn(old.nnz).to(dtype)
    values[0], values[-1] = torch.nan, -0.0
    moved = backend.move(origins, old.layout.vector, values, torch.empty(new.nnz, dtype=dtype))
    bits = torch.int16 if dtype == torch.bfloat16 else torch.int32
    assert torch.equal(moved.view(bits), dense_move(values, old, new).view(bits))
    assert torch.equal(backend.match(old, old), torch.arange(len(old.indices)).int())


SIZES = [("0%", "99%"), ("95%", "30%"), ("100%", "50%"), ("50%:v8", "90%:v8"), ("3:4", "1:4")]


@pytest.mark.parametrize(("before", "after"), [*SIZES, *(pair[::-1] for pair in SIZES)])
def test_counts_and_groups_may_differ(before: str, after: str) -> None:
    old, new = random_structure((16, 520), before, 1), random_structure((16, 520), after, 2)
    values = torch.randn(old.nnz)
    origins = backend.match(old, new)
    moved = backend.move(origins, old.layout.vector, values, torch.empty(new.nnz))
    assert torch.equal(moved, dense_move(values, old, new))


@given(
    st.integers(1, 5), st.integers(1, 530), st.sampled_from([1, 4, 8]), st.integers(0, 2**32 - 1)
)
def test_a_move_there_and_back_keeps_what_both_keep(
    panels: int, cols: int, vector: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    one, two = (
        torch.from_numpy((rng.random((panels, cols)) < rng.random()).repeat(vector, axis=0))
        for _ in range(2)
    )
    old, new = backend.encode(one, vector), backend.encode(two, vector)
    values = torch.from_numpy(rng.standard_normal(old.nnz))
    there = backend.move(backend.match(old, new), vector, values, values.new_empty(new.nnz))
    assert torch.equal(there, dense_move(values, old, new))
    back = backend.move(backend.match(new, old), vector, there, values.new_empty(old.nnz))
    assert torch.equal(backend.scatter(back, old), backend.scatter(values, old) * two)


@pytest.mark.parametrize("pattern", ["90%", "50%:v4", "2:4"])
def test_any_number_of_threads_gives_the_same_bits(pattern: str) -> None:
    old, new = (random_structure((512, 1024), pattern, seed) for seed in (1, 2))
    values = torch.randn(old.nnz)
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            origins = backend.match(old, new)
            moved = backend.move(origins, old.layout.vector, values, torch.empty(new.nnz))
            transposed = backend.transpose(new)
            runs.append((origins, moved, *transposed.structure[1:], transposed.perm))
    finally:
        torch.set_num_threads(threads)
    for a, b in pairwise(runs):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_what_does_not_fit_is_refused() -> None:
    old, new = random_structure((8, 16), "50%", 1), random_structure((8, 16), "50%:v4", 1)
    with pytest.raises(ShapeError, match=r"vector 1, blocks of 256 and of 8 x 16, vector 4"):
        backend.match(old, new)
    with pytest.raises(DTypeError, match="old is a Tensor"):
        backend.match(old.indices, old)
    with pytest.raises(gossamer.StructureError, match="rise"):
        backend.match(old, old._replace(indptr=old.indptr.flip(0)))
    origins, values = backend.match(old, old), torch.randn(old.nnz)
    for wrong in (-2, old.nnz):
        bad = origins.clone()
        bad[3] = wrong
        with pytest.raises(ArgumentError, match=rf"origins\[3\] is {wrong}"):
            backend.move(bad, 1, values, torch.empty(old.nnz))
    for vector, out, error in (
        (2, torch.empty(old.nnz), ArgumentError),
        (1, torch.empty(old.nnz - 1), ShapeError),
        (4, torch.empty(old.nnz), ShapeError),
        (1, torch.empty(old.nnz).double(), DTypeError),
        (1, torch.empty(2 * old.nnz)[::2], ShapeError),
    ):
        with pytest.raises(error):
            backend.move(origins, vector, values, out)
