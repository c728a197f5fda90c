"""Moving values from one structure to another, in place and not, against dense copies."""

from collections.abc import Callable
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


def dense_move(values: Tensor, old: Structure, new: Structure) -> Tensor:
    moved: Tensor = backend.gather(backend.scatter(values, old), new)
    return moved


def moved(values: Tensor, old: Structure, new: Structure) -> Tensor:
    out = values.new_empty(new.nnz)
    backend.move(old, new, [values], [out])
    return out


def numbered(old: Structure, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values that all differ, as far as the dtype goes; none is 0."""
    return (torch.arange(old.nnz) % 251 + 1).to(dtype)


@pytest.mark.parametrize(("pattern", "dtype"), covering(oracle.PATTERNS, DTYPES))
def test_values_are_moved_by_coordinate(pattern: str, dtype: torch.dtype) -> None:
    shape = (48, 640) if pattern != "3:5" else (48, 645)
    old, new = (random_structure(shape, pattern, seed) for seed in (1, 2))
    values = torch.randn(old.nnz).to(dtype)
    values[0], values[-1] = torch.nan, -0.0
    bits = torch.int16 if dtype == torch.bfloat16 else torch.int32
    expected = dense_move(values, old, new)
    assert expected.any()
    assert (expected == 0).any()
    assert torch.equal(moved(values, old, new).view(bits), expected.view(bits))
    assert torch.equal(moved(values, old, old).view(bits), values.view(bits))
    backend.move(old, new, [values])
    assert torch.equal(values.view(bits), expected.view(bits))


SIZES = [("0%", "99%"), ("95%", "30%"), ("100%", "50%"), ("50%:v8", "90%:v8"), ("3:4", "1:4")]


@pytest.mark.parametrize(("before", "after"), [*SIZES, *(pair[::-1] for pair in SIZES)])
def test_counts_and_groups_may_differ(before: str, after: str) -> None:
    old, new = random_structure((16, 520), before, 1), random_structure((16, 520), after, 2)
    values = torch.randn(old.nnz)
    assert torch.equal(moved(values, old, new), dense_move(values, old, new))


def test_tensors_of_several_dtypes_move_together() -> None:
    old, new = random_structure((64, 600), "75%", 1), random_structure((64, 600), "75%", 2)
    tensors = [numbered(old, dtype) for dtype in (*DTYPES, torch.float32)]
    expected = [dense_move(tensor, old, new) for tensor in tensors]
    backend.move(old, new, tensors)
    for found, wanted in zip(tensors, expected, strict=True):
        assert torch.equal(found, wanted)
    backend.move(old, new, [])


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
    there = moved(values, old, new)
    assert torch.equal(there, dense_move(values, old, new))
    back = moved(there, new, old)
    assert torch.equal(backend.scatter(back, old), backend.scatter(values, old) * two)


@given(st.integers(1, 70), st.integers(1, 600), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_a_move_in_place_is_that_to_other_memory(
    rows: int, cols: int, density: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    count = round(density * rows * cols)

    def structure() -> Structure:
        # Rows of very different density, so that entries move far in both directions.
        weight = np.repeat(rng.permutation(rows) ** 2.0 + 0.01, cols) + 1e-9
        chosen = np.argsort(rng.random(rows * cols) ** (1 / weight))[::-1][:count]
        mask = np.zeros(rows * cols, dtype=bool)
        mask[chosen] = True
        return backend.encode(torch.from_numpy(mask.reshape(rows, cols)), 1)

    old, new = structure(), structure()
    values = torch.from_numpy(rng.standard_normal(old.nnz))
    expected = dense_move(values, old, new)
    backend.move(old, new, [values])
    assert torch.equal(values, expected)


def with_threads(counts: tuple[int, ...], run: Callable[[], tuple[Tensor, ...]]) -> None:
    """What runs on several numbers of threads gives the same bits."""
    threads, runs = torch.get_num_threads(), []
    try:
        for count in counts:
            torch.set_num_threads(count)
            runs.append(run())
    finally:
        torch.set_num_threads(threads)
    for a, b in pairwise(runs):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("pattern", ["90%", "50%:v4", "2:4"])
def test_any_number_of_threads_gives_the_same_bits(pattern: str) -> None:
    old, new = (random_structure((512, 1024), pattern, seed) for seed in (1, 2))
    values = torch.randn(old.nnz)

    def run() -> tuple[Tensor, ...]:
        transposed = backend.transpose(new)
        return moved(values, old, new), *transposed.structure[1:], transposed.perm

    with_threads((1, 2, 5), run)


DRIFTS = {
    "early rows": lambda row, width: row < width // 3,
    "late rows": lambda row, width: row >= width - width // 3,
    "even rows": lambda row, width: row % 3 == 0,
    "the middle": lambda row, width: abs(row - width // 2) <= width // 6,
}


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("vector", [1, 4])
@pytest.mark.parametrize("before", DRIFTS)
@pytest.mark.parametrize("after", DRIFTS)
def test_parts_do_not_overwrite_what_others_read(
    before: str, after: str, vector: int, threads: int
) -> None:
    panels, cols = 240, 600
    generator = torch.Generator().manual_seed(3)

    def structure(dense_rows: str) -> Structure:
        bound = torch.tensor([0.9 if DRIFTS[dense_rows](p, panels) else 0.2 for p in range(panels)])
        score = torch.rand(panels, cols, generator=generator) / bound[:, None]
        chosen = score.flatten().argsort()[: panels * cols // 3]
        mask = torch.zeros(panels * cols, dtype=torch.bool)
        mask[chosen] = True
        return backend.encode(mask.view(panels, cols).repeat_interleave(vector, 0), vector)

    old, new = structure(before), structure(after)
    values, more = torch.arange(old.nnz).float() + 1, numbered(old, torch.float64)
    expected, further = dense_move(values, old, new), dense_move(more, old, new)

    def run() -> tuple[Tensor, ...]:
        tensors = values.clone(), more.clone()
        backend.move(old, new, tensors)
        return tensors

    with_threads((1, threads), run)
    found = run()
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], further)


def test_what_does_not_fit_is_refused() -> None:
    old, new = random_structure((8, 16), "50%", 1), random_structure((8, 16), "50%:v4", 1)
    values, out = torch.randn(old.nnz), torch.randn(old.nnz)
    before = values.clone(), out.clone()
    with pytest.raises(ShapeError, match=r"vector 1, blocks of 256 and of 8 x 16, vector 4"):
        backend.move(old, new, [values], [out])
    with pytest.raises(DTypeError, match=r"old=a Tensor.*a Structure is needed"):
        backend.move(old.indices, old, [values], [out])  # type: ignore[arg-type]
    with pytest.raises(gossamer.StructureError, match="rise"):
        backend.move(old, old._replace(indptr=old.indptr.flip(0)), [values], [out])
    for given_values, given_out, error, words in (
        ([values], [out[:-1]], ShapeError, r"out\[0\] must be a contiguous vector of 64"),
        ([values[1:]], [out], ShapeError, r"values\[0\] must be .* got 63"),
        ([values], [out.double()], DTypeError, "out\\[0\\] float64"),
        ([values], [torch.empty(2 * old.nnz)[::2]], ShapeError, "contiguous"),
        ([values, values], [out], ShapeError, "2 arrays of values and 1 of out"),
        ([values.int()], [out.int()], DTypeError, "int32"),
        ([values, out], [out, values], ArgumentError, r"out\[0\] shares memory"),
        ([values, values], [out, out], ArgumentError, r"out\[0\] shares memory"),
        ([values, values], None, ArgumentError, r"out\[0\] shares memory"),
    ):
        with pytest.raises(error, match=words):
            backend.move(old, old, given_values, given_out)
    both = torch.randn(old.nnz + 1)
    with pytest.raises(ArgumentError, match="shares memory"):
        backend.move(old, old, [both[1:]], [both[:-1]])
    assert torch.equal(values, before[0])
    assert torch.equal(out, before[1])


def test_a_damaged_structure_touches_no_other_memory() -> None:
    old, new = (random_structure((8, 512), "50%", seed) for seed in (1, 2))
    values = numbered(old)
    crowded = old.indptr.clone()
    crowded[1:-1] = crowded[-1]
    with pytest.raises(gossamer.StructureError, match="more entries of a block"):
        backend.move(old._replace(indptr=crowded), new, [values])
    assert torch.equal(values, numbered(old))
    for damaged in (torch.zeros_like(old.indices), torch.full_like(old.indices, 255)):
        framed = torch.full((old.nnz + 64,), 7.0)
        framed[32:-32] = values
        backend.move(old._replace(indices=damaged), new, [framed[32:-32]])
        backend.move(old, new._replace(indices=damaged), [framed[32:-32]])
        assert bool((framed[:32] == 7).all())
        assert bool((framed[-32:] == 7).all())
        assert bool(torch.isin(framed, torch.cat([values, torch.tensor([0.0, 7.0])])).all())
