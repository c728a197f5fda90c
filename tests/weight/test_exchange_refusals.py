"""What the exchange of sparse matrices refuses, and the errors that name the place."""

import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from gossamer import SparseWeight
from gossamer.errors import DeviceError, DTypeError, PatternError, ShapeError, StructureError


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # torch says once that its compressed layouts are in beta.
        warnings.filterwarnings("ignore", "Sparse C|Sparse B|Sparse invariant", UserWarning)
        yield


def some(dtype: torch.dtype = torch.float32) -> SparseWeight:
    return SparseWeight.from_dense(torch.eye(4, dtype=dtype), "75%")


CSR = {
    "indptr starts late": ([1, 2, 3], [0, 1, 2], "starts with 1"),
    "indptr starts below 0": ([-1, 2, 3], [0, 1, 2], "starts with -1"),
    "indptr falls": ([0, 3, 2], [0, 1, 2], "row 1 goes from entry 3 to 2"),
    "indptr falls below 0": ([0, -2, 3], [0, 1, 2], "row 0 goes from entry 0 to -2"),
    "indptr ends early": ([0, 1, 2], [0, 1, 2], "ends with 2"),
    "indptr ends late": ([0, 1, 4], [0, 1, 2], "row 1 goes from entry 1 to 4"),
    "indptr goes far out": ([0, 2**62, 3], [0, 1, 2], "row 0 goes from entry 0 to"),
    "indptr is short": ([0, 3], [0, 1, 2], "2 rows need 3"),
    "indptr is long": ([0, 1, 3, 3], [0, 1, 2], "2 rows need 3"),
    "indptr is empty": ([], [0, 1, 2], "2 rows need 3"),
    "an index is too large": ([0, 1, 3], [0, 1, 4], r"entry 2 is at \[1, 4\], outside"),
    "an index is negative": ([0, 1, 3], [0, -1, 2], r"entry 1 is at \[1, -1\], outside"),
    "an index is huge": ([0, 1, 3], [2**40, 1, 2], r"entry 0 is at \[0, 1099511627776\], outside"),
    "an index is the least": ([0, 1, 3], [-(2**63), 1, 2], "entry 0 is at"),
    "an entry is repeated": ([0, 1, 3], [0, 2, 2], r"\[1, 2\] is given twice, by entries 1 and 2"),
    "a row is unsorted": ([0, 1, 3], [0, 2, 1], r"entry 2 at \[1, 1\] follows \[1, 2\]"),
}


@pytest.mark.parametrize("case", CSR)
@pytest.mark.parametrize("source", ["arrays", "csr", "csc", "bsr"])
def test_a_malformed_matrix_is_an_error_that_names_the_place(case: str, source: str) -> None:
    pointers, ids, words = CSR[case]
    indptr = torch.tensor(pointers, dtype=torch.int64)
    indices, values = torch.tensor(ids), torch.ones(3)
    if source == "arrays":
        with pytest.raises(StructureError, match=f"from_csr: .*{words}"):
            SparseWeight.from_csr(indptr, indices, values, (2, 4))
        return
    shape, kind = (2, 4), torch.sparse_csr_tensor
    if source == "csc":
        shape, kind = (4, 2), torch.sparse_csc_tensor
    elif source == "bsr":
        values, shape, kind = torch.ones(3, 2, 1), (4, 4), torch.sparse_bsr_tensor
    try:
        matrix = kind(indptr, indices, values, shape, check_invariants=False)
    except RuntimeError:
        pytest.skip("torch makes no such tensor")
    with pytest.raises(StructureError, match="from_torch_sparse: "):
        SparseWeight.from_torch_sparse(matrix)


def test_csc_errors_name_the_coordinates_of_the_matrix() -> None:
    arrays = torch.tensor([0, 1, 3]), torch.tensor([0, 3, 3]), torch.ones(3)
    matrix = torch.sparse_csc_tensor(*arrays, (4, 2), check_invariants=False)
    with pytest.raises(StructureError, match=r"\[3, 1\] is given twice"):
        SparseWeight.from_torch_sparse(matrix)


@pytest.mark.parametrize(("row", "col"), [(2, 0), (-1, 0), (0, 3), (0, -1), (0, 2**62)])
def test_coo_indices_out_of_range_are_named(row: int, col: int) -> None:
    at = torch.tensor([[0, row], [0, col]])
    matrix = torch.sparse_coo_tensor(at, torch.ones(2), (2, 3), check_invariants=False)
    for flag in (False, True):
        matrix._coalesced_(flag)
        with pytest.raises(StructureError, match=rf"entry 1 is at \[{row}, {col}\], outside"):
            SparseWeight.from_torch_sparse(matrix)


@pytest.mark.parametrize("kind", ["csr", "csc", "bsr", "coo"])
def test_a_damaged_scipy_matrix_is_an_error(kind: str) -> None:
    eye = scipy.sparse.eye_array(8)
    matrix = eye.tobsr(blocksize=(2, 2)) if kind == "bsr" else eye.asformat(kind)
    if kind == "coo":
        matrix.row[3] = 99
    else:
        matrix.indices[3] = 99
    with pytest.raises(StructureError, match="outside a matrix"):
        SparseWeight.from_scipy(matrix)
    if kind != "coo":
        matrix.indices[3] = 3
        matrix.indptr[1] = 10**6
        with pytest.raises(StructureError, match="goes from entry 0 to 1000000"):
            SparseWeight.from_scipy(matrix)


def csr(**change: Any) -> tuple[Any, ...]:
    arrays = {
        "indptr": torch.tensor([0, 1, 3]),
        "indices": torch.tensor([0, 1, 2]),
        "values": torch.ones(3),
        "shape": (2, 4),
    }
    return tuple((arrays | change).values())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"values": torch.ones(2)}, ShapeError, "3 were given for 2 values"),
        ({"values": torch.ones(3, 1)}, ShapeError, "values has shape"),
        ({"values": torch.ones(3).half()}, DTypeError, "float16"),
        ({"values": torch.ones(3).int()}, DTypeError, "int32"),
        ({"values": [1.0, 2.0, 3.0]}, DTypeError, "list"),
        ({"values": torch.ones(3, device="meta")}, DeviceError, "meta"),
        ({"indices": torch.ones(3)}, DTypeError, "indices has dtype"),
        ({"indices": torch.ones(3, 1).long()}, ShapeError, "indices has shape"),
        ({"indices": torch.ones(3, dtype=torch.bool)}, DTypeError, "bool"),
        ({"indices": np.ones(3, ">i8")}, DTypeError, ">i8"),
        ({"indptr": None}, DTypeError, "NoneType"),
        ({"shape": (-2, 4)}, ShapeError, "negative"),
        ({"shape": (2.0, 4)}, DTypeError, "integer"),
        ({"shape": (2**40, 4)}, ShapeError, "below 2.31"),
        ({"shape": 4}, DTypeError, "shape=4"),
        ({"shape": (2, 4, 1)}, ShapeError, "two sizes"),
    ],
)
def test_arrays_of_the_wrong_kind_are_named(
    change: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        SparseWeight.from_csr(*csr(**change))


@pytest.mark.parametrize(
    ("pattern", "error", "words"),
    [
        ("2:4", StructureError, "1 of columns 0..3 of row 0 are kept; 2:4 keeps 2"),
        ("50%", StructureError, "keeps 3 entries, pattern 50% needs 4"),
        ("62.5%:v4", PatternError, "multiple of 4"),
        ("block 1x2 50%", StructureError, "a part of the 1x2 tile"),
        ("spam", PatternError, "spam"),
    ],
)
def test_entries_that_do_not_obey_the_pattern_are_refused(
    pattern: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        SparseWeight.from_csr(*csr(), pattern)


def test_rows_of_a_panel_and_tiles_must_agree() -> None:
    mask = torch.zeros(4, 8)
    mask[:, [1, 6]] = 1
    mask[2, 6], mask[2, 5] = 0, 1
    with pytest.raises(StructureError, match=r"rows 0 and 2 differ: only \[2, 5\] is kept"):
        SparseWeight.from_torch_sparse(mask.to_sparse(), "75%:v4")
    mask = torch.zeros(4, 8)
    mask[:2, 2:4] = mask[2:, 5:7] = 1
    with pytest.raises(StructureError, match=r"a part of the 2x2 tile at \[2, 4\]"):
        SparseWeight.from_torch_sparse(mask.to_sparse(), "block 2x2 75%")


def test_unbalanced_choices_are_refused() -> None:
    mask = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    with pytest.raises(StructureError, match=r"takes columns \[0\] 2 times"):
        SparseWeight.from_torch_sparse(mask.to_sparse(), "1:2:g1")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: SparseWeight.from_torch_sparse(torch.eye(3)), DTypeError, "from_dense"),
        (lambda: SparseWeight.from_torch_sparse("x"), DTypeError, "str"),
        (lambda: SparseWeight.from_torch_sparse(torch.ones(3).to_sparse()), ShapeError, r"\[3\]"),
        (
            lambda: SparseWeight.from_torch_sparse(torch.ones(2, 2, 2).to_sparse()),
            ShapeError,
            "rows",
        ),
        (
            lambda: SparseWeight.from_torch_sparse(torch.ones(2, 2).to_sparse(1)),
            DTypeError,
            "1 sparse dimensions",
        ),
        (lambda: SparseWeight.from_torch_sparse(torch.eye(2).half().to_sparse()), DTypeError, "16"),
        (lambda: SparseWeight.from_scipy(np.eye(3)), DTypeError, "from_dense"),
        (lambda: SparseWeight.from_scipy(torch.eye(3).to_sparse()), DTypeError, "torch_sparse"),
        (lambda: SparseWeight.from_scipy(scipy.sparse.eye_array(3, dtype=int)), DTypeError, "int"),
        (lambda: some().to_torch_sparse(torch.strided), DTypeError, "to_dense"),
        (lambda: some(torch.bfloat16).to_scipy(), DTypeError, "bfloat16"),
    ],
)
def test_other_things_are_refused(
    call: Callable[[], Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        call()


def test_without_scipy_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = SparseWeight.from_torch_sparse(torch.eye(3).to_sparse())
    for name in [name for name in sys.modules if name.partition(".")[0] == "scipy"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "scipy", None)
    for call in (weight.to_scipy, lambda: SparseWeight.from_scipy(None)):
        with pytest.raises(ImportError, match="needs SciPy: pip install scipy"):
            call()
