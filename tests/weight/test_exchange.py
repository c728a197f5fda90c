"""Sparse weights from and to CSR, CSC, COO and BSR of torch and SciPy, without a dense matrix."""

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer import SparseLinear, SparseWeight
from gossamer.masks import random_mask
from gossamer.patterns import Block, parse_pattern
from support.fences import ROOT

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
LAYOUTS = [torch.sparse_csr, torch.sparse_csc, torch.sparse_coo, torch.sparse_bsr]
PATTERNS = ["80%", "60%:v4", "2:4", "1:8:v8", "block 16x16 50%", "block 3x4 50%", "2:4:g2"]
PATTERNS += ["2:4:v16", "75%:v32", "1:4:v128", "block 64x2 50%"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # torch says once that its compressed layouts are in beta.
        warnings.filterwarnings("ignore", "Sparse C|Sparse B|Sparse invariant", UserWarning)
        yield


def made(pattern: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> SparseWeight:
    # Two blocks of columns; multiples of every tile.
    shape = (max(48, 2 * parse_pattern(pattern).tile[0]), 320)
    mask = random_mask(shape, pattern, seed)
    dense = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return SparseWeight.from_dense(dense, pattern, mask)


def dense_of(weight: SparseWeight) -> Tensor:
    return weight.to_dense().detach()


def same(a: SparseWeight, b: SparseWeight) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


# ---- there and back ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_torch_and_back(pattern: str, layout: torch.layout, dtype: torch.dtype) -> None:
    weight = made(pattern, dtype)
    matrix = weight.to_torch_sparse(layout)
    assert matrix.layout is layout
    assert matrix.dtype is dtype
    assert not matrix.requires_grad
    assert torch.equal(matrix.to_dense(), dense_of(weight))
    assert same(SparseWeight.from_torch_sparse(matrix, pattern), weight)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_scipy_and_back(pattern: str, dtype: torch.dtype) -> None:
    weight = made(pattern, dtype)
    matrix = weight.to_scipy()
    assert matrix.has_canonical_format
    assert np.array_equal(matrix.toarray(), dense_of(weight).numpy())
    for kind in ("csr", "csc", "coo", "lil", "dok"):
        assert same(SparseWeight.from_scipy(matrix.asformat(kind), pattern), weight), kind
    old = scipy.sparse.csr_matrix(matrix)
    assert same(SparseWeight.from_scipy(old, pattern), weight)


def test_torch_makes_the_same_of_its_own_results() -> None:
    dense = torch.randn(6, 8) * (torch.rand(6, 8) < 0.4)
    made_by_torch: list[Callable[[], Tensor]] = [
        dense.to_sparse,
        dense.to_sparse_csr,
        dense.to_sparse_csc,
        lambda: dense.to_sparse_bsr((2, 4)),
    ]
    for make in made_by_torch:
        weight = SparseWeight.from_torch_sparse(make())
        assert torch.equal(dense_of(weight), dense)


def test_the_pattern_follows_from_the_matrix() -> None:
    matrix = torch.zeros(8, 12)
    matrix[:4, 4:8] = 1
    assert SparseWeight.from_torch_sparse(matrix.to_sparse_bsr((4, 4))).pattern == Block(
        4, 4, 1 - 1 / 6
    )
    weight = SparseWeight.from_torch_sparse(matrix.to_sparse_csr())
    assert weight.pattern.count(8, 12) == weight.nnz == 16
    shared = SparseWeight.from_torch_sparse(matrix.to_sparse_csr(), f"{100 * (1 - 1 / 6)}%:v4")
    assert shared.layout.vector == 4
    tiles = scipy.sparse.bsr_array(matrix.numpy(), blocksize=(4, 4))
    assert SparseWeight.from_scipy(tiles).pattern == Block(4, 4, 1 - 1 / 6)


@settings(deadline=None)
@given(st.data())
def test_any_mask_goes_round_by_every_format(data: st.DataObject) -> None:
    rows, cols = data.draw(st.integers(1, 9)), data.draw(st.sampled_from([1, 5, 256, 300]))
    seed, share = data.draw(st.integers(0, 99)), data.draw(st.floats(0, 1))
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, cols, generator=generator)
    dense *= torch.rand(rows, cols, generator=generator) < share
    csr = scipy.sparse.csr_array(dense.numpy())
    weight = SparseWeight.from_csr(csr.indptr, csr.indices, csr.data, (rows, cols))
    assert weight.nnz == csr.nnz
    assert torch.equal(dense_of(weight), dense)
    for layout in LAYOUTS:
        again = SparseWeight.from_torch_sparse(weight.to_torch_sparse(layout))
        assert torch.equal(dense_of(again), dense)
    assert same(SparseWeight.from_scipy(weight.to_scipy()), weight)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (3, 5)])
def test_nothing_goes_round(shape: tuple[int, int]) -> None:
    for layout in LAYOUTS[:3]:
        empty = torch.zeros(shape).to_sparse(layout=layout)
        weight = SparseWeight.from_torch_sparse(empty)
        assert weight.nnz == 0
        assert weight.to_torch_sparse(layout).shape == shape
    assert SparseWeight.from_scipy(scipy.sparse.csr_array(shape)).nnz == 0


# ---- what a user of torch or SciPy expects -----------------------------------------------------


def test_repeated_entries_are_added_up_where_the_library_does() -> None:
    at = torch.tensor([[1, 0, 1], [2, 0, 2]])
    coo = torch.sparse_coo_tensor(at, torch.tensor([1.0, 2.0, 3.0]), (2, 3))
    expected = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    assert torch.equal(dense_of(SparseWeight.from_torch_sparse(coo)), expected)
    assert not coo.is_coalesced()  # the given tensor is left alone
    theirs = scipy.sparse.coo_array(([1.0, 2.0, 3.0], (at[0].numpy(), at[1].numpy())), (2, 3))
    assert torch.equal(dense_of(SparseWeight.from_scipy(theirs)), expected.double())


@pytest.mark.parametrize("kind", [scipy.sparse.csr_array, scipy.sparse.csc_array])
def test_unsorted_scipy_indices_are_sorted(kind: Any) -> None:
    matrix = kind((np.array([1.0, 2.0, 4.0]), np.array([2, 0, 2]), np.array([0, 3, 3, 3])), (3, 3))
    weight = SparseWeight.from_scipy(matrix)
    assert np.array_equal(dense_of(weight).numpy(), matrix.toarray())
    assert matrix.indices.tolist() == [2, 0, 2]  # the given matrix is left alone


def test_a_stored_zero_is_an_entry() -> None:
    csr = torch.tensor([0, 1]), torch.tensor([1]), torch.tensor([0.0])
    assert SparseWeight.from_csr(*csr, (1, 2)).nnz == 1


def test_it_owns_its_values_and_has_no_graph() -> None:
    values = torch.ones(2, requires_grad=True)
    weight = SparseWeight.from_csr(torch.tensor([0, 2]), torch.tensor([0, 1]), values, (1, 2))
    with torch.no_grad():
        values.zero_()
    assert weight.values.tolist() == [1.0, 1.0]
    assert weight.values.is_leaf
    back = weight.to_torch_sparse()
    with torch.no_grad():
        weight.values.zero_()
    assert back.values().tolist() == [1.0, 1.0]


def test_arrays_of_any_kind_are_read() -> None:
    indptr = np.array([0, 9, 1, 9, 2])[::2]
    indices = np.array([1, 0], dtype=np.int32)
    indices.flags.writeable = False
    data = np.array([3.0, 7.0, 5.0], dtype=np.float32)[::-2]
    weight = SparseWeight.from_csr(indptr, indices, data, (2, 2))
    assert dense_of(weight).tolist() == [[0.0, 5.0], [3.0, 0.0]]


def test_a_layer_of_such_a_weight_trains() -> None:
    matrix = torch.zeros(8, 16)
    matrix[::2, ::4] = 1.0
    layer = SparseLinear.of_parts(SparseWeight.from_torch_sparse(matrix.to_sparse_csr()))
    x = torch.randn(3, 16)
    y = layer(x)
    torch.testing.assert_close(y, x @ matrix.T)
    y.square().sum().backward()
    assert layer.weight.values.grad is not None
    assert layer.bias is None


@pytest.mark.slow
@pytest.mark.process
def test_the_exchange_makes_no_dense_matrix() -> None:
    patterns = ["dense 2:4", "csr 99%", "csc 99%", "coo 99%", "bsr block 16x16 99%", "scipy 99%"]
    command = [sys.executable, str(ROOT / "tests/support/memory_worker.py"), "8192", *patterns]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    rises = [int(line.strip("[]").split(",")[0]) for line in done.stdout.splitlines()]
    dense = 4 * 8192**2
    assert rises[0] > dense
    assert max(rises[1:]) < dense // 3, dict(zip(patterns, rises, strict=True))
