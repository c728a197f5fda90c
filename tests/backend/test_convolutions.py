"""Every table's convolutions, of every case, dtype, panel and memory format, against the oracle."""

from collections.abc import Callable, Iterator

import pytest
import torch

from gossamer import backend
from gossamer.backend import convolutions, transpose
from gossamer.errors import ShapeError, StructureError
from tests.support.convolutions import (
    CASES,
    Case,
    dense_convolution,
    dense_of,
    laid_out,
    structure_of,
)

TABLES = (*backend.isas(), "reference")
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1.2e-2}


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Iterator[str]:
    before = backend.isa()
    backend.use_isa(request.param)
    yield request.param
    backend.use_isa(before)


def _close(got: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor) -> None:
    """Compare, with a tolerance of the sum of the terms' magnitudes."""
    assert got.shape == expected.shape
    off = (got.double() - expected).abs() - TOLERANCE[got.dtype] * (scale + 1e-30)
    assert (off <= 0).all(), float(off.max())


def _check(case: Case, dtype: torch.dtype, structure: backend.Structure, how: str) -> None:
    x = torch.randn(case.images, case.channels, *case.size).to(dtype)
    values = torch.randn(structure.nnz).to(dtype)
    bias = torch.randn(case.out).to(dtype)
    wide = [t.double().requires_grad_() for t in (x, values, bias)]
    y = dense_convolution(wide[0], dense_of(wide[1], structure, case), case, wide[2])
    g = torch.randn(y.shape).to(dtype)
    dx, dvalues, _ = torch.autograd.grad(y, wide, g.double())
    size = [t.detach().abs().requires_grad_() for t in wide]
    y_size = dense_convolution(size[0], dense_of(size[1], structure, case), case, size[2])
    dx_size, dvalues_size, _ = torch.autograd.grad(y_size, size, g.double().abs())

    x, g = laid_out(x, how), laid_out(g, how)
    window = case.window
    got = convolutions.convolve(x, values, structure, window, bias)
    _close(got, y.detach(), y_size.detach())
    if how == "channels_last" and x.dim() == 4 and not x.is_contiguous():
        assert got.is_contiguous(memory_format=torch.channels_last)
    turned = transpose(structure) if structure.layout.vector == 1 else None
    for t in (None, turned):
        got = convolutions.convolve_input(g, values, structure, window, case.size, t)
        _close(got, dx, dx_size)
    _close(convolutions.convolve_weight(g, x, structure, window), dvalues, dvalues_size)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("table", TABLES, indirect=True)
def test_cases(table: str, case: Case, dtype: torch.dtype) -> None:
    for vector in (1, 4, 8):
        if case.out // case.groups % vector == 0:
            _check(case, dtype, structure_of(case, vector, 0.3), "plain")


@pytest.mark.parametrize("how", ["channels_last", "spaced", "turned"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("table", TABLES, indirect=True)
def test_memory_formats(table: str, dtype: torch.dtype, how: str) -> None:
    for case in (CASES[1], CASES[2], CASES[4], CASES[6], CASES[9], CASES[15]):
        _check(case, dtype, structure_of(case, 4, 0.3), how)
        _check(case, dtype, structure_of(case, 1, 0.1), how)


@pytest.mark.parametrize("vector", [1, 4, 8])
@pytest.mark.parametrize("table", TABLES, indirect=True)
def test_groups_of_channels(table: str, vector: int) -> None:
    for case in (CASES[1], CASES[8], CASES[10]):
        m = 4
        _check(case, torch.float32, structure_of(case, vector, 0, m, 2), "plain")


@pytest.mark.parametrize("table", TABLES, indirect=True)
def test_densities(table: str) -> None:
    """Few entries per row take wide tiles, many are visited in halves; a row may have none."""
    case = Case(64, 8, (9, 9), (3, 3), (1, 1), (1, 1), (1, 1))
    for keep in (0.0, 0.01, 0.5, 1.0):
        _check(case, torch.float32, structure_of(case, 1, keep), "plain")


# Few entries: images are packed once for all taps, on a grid with gaps. Padding that
# is none or large, taps that reach beyond a tile, grids of several tiles and images.
SHARED = (
    Case(16, 8, (13, 9), (3, 3), (1, 1), (1, 1), (1, 1), images=5),
    Case(16, 8, (13, 9), (4, 2), (1, 1), (0, 0), (1, 1)),
    Case(16, 8, (9, 30), (5, 5), (1, 1), (6, 5), (2, 2)),
    Case(16, 8, (70, 70), (3, 3), (1, 1), (1, 1), (1, 1), images=2),
    Case(16, 8, (200,), (7,), (1,), (3,), (1,), groups=2),
    Case(16, 8, (4, 5, 6), (3, 2, 3), (1, 1, 1), (1, 0, 2), (1, 1, 1)),
    Case(16, 8, (15, 14), (3, 3), (2, 2), (1, 1), (1, 1)),
    Case(16, 8, (17, 21), (5, 4), (2, 3), (4, 3), (1, 1)),
    Case(16, 8, (20, 20), (3, 3), (2, 2), (0, 5), (2, 3)),
    Case(16, 8, (5, 7, 6), (3, 3, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1)),
    # Windows, also of sums, of several tiles.
    Case(64, 8, (50, 43), (3, 3), (1, 1), (1, 1), (1, 1), images=2),
    Case(64, 8, (60, 50), (3, 3), (2, 2), (1, 1), (1, 1), images=3),
)


@pytest.mark.parametrize("how", ["plain", "channels_last"])
@pytest.mark.parametrize("table", TABLES, indirect=True)
def test_images_packed_once_for_all_taps(table: str, how: str) -> None:
    for case in SHARED:
        for vector, keep in ((1, 0.02), (1, 0.3), (4, 0.1)):
            _check(case, torch.float32, structure_of(case, vector, keep), how)


@pytest.mark.parametrize("table", TABLES, indirect=True)
def test_more_padding_behind_than_in_front(table: str) -> None:
    case = Case(16, 8, (9, 9), (4, 4), (1, 1), (0, 0), (1, 1))
    window = case.window._replace(front=(1, 0), behind=(2, 3))
    structure = structure_of(case, 1, 0.05)
    x = torch.randn(3, 16, 9, 9, requires_grad=True)
    values = torch.randn(structure.nnz, requires_grad=True)
    wide = torch.nn.functional.pad(x, (0, 3, 1, 2))
    expected = dense_convolution(wide, dense_of(values, structure, case), case)
    g = torch.randn(expected.shape)
    dx, dvalues = torch.autograd.grad(expected, [x, values], g)
    with torch.no_grad():
        got = convolutions.convolve(x, values, structure, window)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        for turned in (None, transpose(structure)):
            got = convolutions.convolve_input(g, values, structure, window, (9, 9), turned)
            torch.testing.assert_close(got, dx, rtol=1e-4, atol=1e-4)
        got = convolutions.convolve_weight(g, x, structure, window)
        torch.testing.assert_close(got, dvalues, rtol=1e-4, atol=1e-3)


def test_runs_of_panels() -> None:
    """Equal lists in neighbouring panels do not send a convolution to the matrix tiles."""
    case = Case(32, 32, (6, 6), (3, 3), (1, 1), (1, 1), (1, 1))
    mask = (torch.rand(1, case.cols) < 0.3).expand(case.out, -1).contiguous()
    for name in backend.isas():
        backend.use_isa(name)
        _check(case, torch.bfloat16, backend.encode(mask, 8, 0, 0), "plain")


def test_nothing_to_do() -> None:
    case = CASES[0]
    structure = structure_of(case, 4, 0.5)
    values = torch.randn(structure.nnz)
    x = torch.randn(0, 8, 7, 7)
    y = convolutions.convolve(x, values, structure, case.window)
    assert y.shape == (0, 16, 7, 7)
    assert convolutions.convolve_weight(y, x, structure, case.window).count_nonzero() == 0
    assert convolutions.convolve_input(y, values, structure, case.window, (7, 7)).numel() == 0


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_any_number_of_threads_gives_equal_bits(dtype: torch.dtype) -> None:
    for case, vector in (
        (CASES[1], 1),
        (CASES[1], 4),
        (CASES[2], 4),
        (CASES[9], 1),
        (SHARED[0], 1),
        (SHARED[10], 4),
        (SHARED[11], 1),
    ):
        products = _products_of(case._replace(images=7), vector, dtype)
        torch.set_num_threads(1)
        one = products()
        for threads in (2, 5):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(one, products(), strict=True))


def _products_of(
    case: Case, vector: int, dtype: torch.dtype
) -> Callable[[], tuple[torch.Tensor, ...]]:
    structure = structure_of(case, vector, 0.3)
    x = torch.randn(case.images, case.channels, *case.size).to(dtype)
    values = torch.randn(structure.nnz).to(dtype)
    g = torch.randn(case.images, case.out, *case.window.output_size(case.size)).to(dtype)
    turned = transpose(structure) if vector == 1 else None
    return lambda: (
        convolutions.convolve(x, values, structure, case.window),
        convolutions.convolve_input(g, values, structure, case.window, case.size, turned),
        convolutions.convolve_weight(g, x, structure, case.window),
    )


def test_what_does_not_fit_is_refused() -> None:
    case = CASES[0]
    structure = structure_of(case, 4, 0.5)
    values = torch.randn(structure.nnz)
    x = torch.randn(2, 8, 7, 7)
    with pytest.raises(ShapeError, match=r"8, .size.*got 4 dimensions and 4 channels"):
        convolutions.convolve(x[:, :4], values, structure, case.window)
    with pytest.raises(ShapeError, match="smaller than a window"):
        convolutions.convolve(x[..., :0], values, structure, case.window._replace(front=(0, 0)))
    with pytest.raises(ShapeError, match="does not fit"):
        convolutions.convolve(x, values, structure, case.window._replace(groups=8))
    with pytest.raises(ShapeError, match="positive"):
        convolutions.convolve(x, values, structure, case.window._replace(front=(-1, 0)))
    other = transpose(structure_of(case, 1, 0.5))
    with pytest.raises(StructureError, match="does not belong"):
        convolutions.convolve_input(
            torch.randn(2, 16, 7, 7), values, structure_of(CASES[1], 1, 0.01), CASES[1].window,
            (7, 7), other,
        )  # fmt: skip
