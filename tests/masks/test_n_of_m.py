"""Selecting and packing N:M against the mask, its structure and a gather, bit for bit."""

import functools
import math
import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer import backend
from gossamer.backend import Structure
from gossamer.errors import (
    ArgumentError,
    DeviceError,
    DTypeError,
    GossamerError,
    PatternError,
    ShapeError,
    StructureError,
)
from gossamer.masks import magnitude_mask
from gossamer.masks.n_of_m import add_pruned_, mask_difference, select_nm
from gossamer.patterns import NM, parse_pattern
from support.grids import covering

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
# The others run the portable table.
ISAS = backend.isas()
PATTERNS = ["2:4", "1:4", "2:8", "1:8", "1:16", "2:16", "4:8", "3:5", "7:64", "1:1", "3:3", "1:2"]
VECTORS = ["", ":v4", ":v8", ":v16", ":v64"]


def expected(weight: Tensor, pattern: str | NM) -> tuple[Tensor, Structure]:
    """The same by way of a dense mask."""
    p = parse_pattern(pattern)
    assert isinstance(p, NM)
    structure = backend.encode(magnitude_mask(weight, p), p.panel, p.n, p.m)
    return backend.gather(weight, structure), structure


def as_bits(values: Tensor) -> Tensor:
    return values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])


def same(a: tuple[Tensor, Structure], b: tuple[Tensor, Structure]) -> bool:
    return (
        a[1].layout == b[1].layout
        and a[1].indptr is b[1].indptr is None
        and torch.equal(a[1].indices, b[1].indices)
        and a[0].dtype == b[0].dtype
        and torch.equal(as_bits(a[0]), as_bits(b[0]))
    )


def with_ties(rows: int, cols: int, dtype: torch.dtype) -> Tensor:
    """Few different magnitudes, both signs, zeros of both signs."""
    return ((torch.randn(rows, cols) * 3).round() / 4).to(dtype)


@pytest.mark.parametrize(("isa", "dtype", "vector"), covering(ISAS, DTYPES, VECTORS, whole=2))
def test_select_is_mask_encode_gather(isa: str, dtype: torch.dtype, vector: str) -> None:
    backend.use_isa(isa)
    for text in PATTERNS:
        pattern = parse_pattern(text + vector)
        assert isinstance(pattern, NM)
        # Units of four panels, a last one that is shorter; one block of columns, several, and a
        # last one that is narrower, of one group or more.
        for panels, groups in ((1, 1), (3, 3), (13, 256 // pattern.m + 1), (6, 700 // pattern.m)):
            shape = panels * pattern.vector, groups * pattern.m
            for weight in (torch.randn(shape).to(dtype), with_ties(*shape, dtype)):
                assert same(select_nm(weight, pattern), expected(weight, pattern)), (text, shape)


@given(
    st.integers(1, 64).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m))),
    st.sampled_from([1, 4, 8, 16, 128]),
    st.integers(1, 9),
    st.integers(1, 300),
    st.sampled_from(DTYPES),
    st.integers(0, 2**31),
)
@settings(derandomize=True, max_examples=80)
def test_any_pattern(
    nm: tuple[int, int], vector: int, panels: int, cols: int, dtype: torch.dtype, seed: int
) -> None:
    n, m = nm
    torch.manual_seed(seed)
    weight = with_ties(panels * vector, math.ceil(cols / m) * m, dtype)
    pattern = NM(n, m, vector)
    assert same(select_nm(weight, pattern), expected(weight, pattern))


@pytest.mark.parametrize(("isa", "pattern"), covering(ISAS, ["2:4", "1:4:v4", "3:8", "1:16"]))
def test_threads_and_tasks_do_not_change_a_bit(isa: str, pattern: str) -> None:
    backend.use_isa(isa)
    # Many short tasks, a few of many blocks, and rows in one task that fill several runs.
    for shape in ((200, 1040), (8, 70_000), (1028, 80)):
        weight = with_ties(*shape, torch.float32)
        want = expected(weight, pattern)
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert same(select_nm(weight, pattern), want)
            assert mask_difference(want[1], select_nm(weight, pattern)[1]) == 0


def test_calls_from_two_threads() -> None:
    weights = [torch.randn(64, 512) for _ in range(2)]
    want = [expected(w, "2:8") for w in weights]
    good: list[bool] = []

    def work(i: int) -> None:
        good.append(all(same(select_nm(weights[i], "2:8"), want[i]) for _ in range(50)))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert good == [True, True]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "2:8", "1:4:v4", "3:8"])
def test_strides(isa: str, pattern: str) -> None:
    backend.use_isa(isa)
    base = torch.randn(72, 96)
    views: list[Callable[[], Tensor]] = [
        lambda: base.t()[:, :64],
        lambda: base[::3, 8:40],
        lambda: base[:, ::2][:, :32],
        lambda: base[:1, :64].expand(8, 64),
        lambda: base.as_strided((8, 64), (3, 1), 5),
        lambda: base[:8, :64].flip(0),
    ]
    for view in views:
        assert same(select_nm(view(), pattern), expected(view().contiguous(), pattern))
    negative = torch._neg_view(base[:8, :64])
    assert same(select_nm(negative, pattern), expected(-base[:8, :64], pattern))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_is_the_largest_and_infinity_next(isa: str, dtype: torch.dtype) -> None:
    backend.use_isa(isa)
    nan, inf, big = math.nan, math.inf, 3e38
    row = torch.tensor([[inf, big, nan, -inf, nan, big, -nan, nan]], dtype=dtype)
    kept = {
        "1:8": [2],
        "2:8": [2, 4],
        "4:8": [2, 4, 6, 7],
        "5:8": [0, 2, 4, 6, 7],
        "1:4": [2, 4],
        "2:4": [0, 2, 4, 6],
        "6:8": [0, 2, 3, 4, 6, 7],
    }
    for pattern, columns in kept.items():
        values, structure = select_nm(row, pattern)
        assert structure.indices.tolist() == columns
        assert torch.equal(as_bits(values), as_bits(row[0, columns]))
        panel = torch.zeros(4, 8, dtype=dtype)
        panel[2] = row
        assert select_nm(panel, pattern + ":v4")[1].indices.tolist() == columns
    backend.validate(select_nm(torch.full((8, 64), nan, dtype=dtype), "7:64:v8")[1])


def test_every_nan_counts_the_same() -> None:
    bits = torch.tensor([[0x7F800001, 0x7FFFFFFF, -1, 0x7FC00000]], dtype=torch.int32)
    for pattern, columns in (("1:4", [0]), ("2:4", [0, 1]), ("3:4", [0, 1, 2])):
        values, structure = select_nm(bits.view(torch.float32), pattern)
        assert structure.indices.tolist() == columns
        assert torch.equal(values.view(torch.int32), bits[0, columns])


def test_subnormals_have_an_order() -> None:
    weight = torch.tensor([[1.0, -3.0, 0.0, 2.0, 0.0, -0.0, 0.0, 1.0]]) * 2.0**-149
    assert select_nm(weight, "1:4")[1].indices.tolist() == [1, 7]
    assert select_nm(weight, "2:4")[1].indices.tolist() == [1, 3, 4, 7]


def test_ties_keep_the_lower_column() -> None:
    equal = torch.tensor([[-1.0, 1.0] * 32])
    for n, m in ((1, 4), (2, 4), (3, 4), (1, 8), (2, 8), (5, 8), (2, 16), (9, 64)):
        got = select_nm(equal, NM(n, m))[1].indices.reshape(-1, n)
        want = torch.arange(0, 64, m)[:, None] + torch.arange(n)
        assert torch.equal(got.long(), want)
    # Sums over a panel tie as well.
    panel = torch.tensor([[1.0, 2.0, 3.0, 0.0]]).expand(4, 4).clone()
    panel[:2, 3], panel[2:, 3] = -5.0, 1.0
    assert select_nm(panel, "1:4:v4")[1].indices.tolist() == [2]
    # In float64 this sum is larger; in float32 it would tie.
    panel = torch.tensor([[1.0, 1.0], [0.0, 2.0**-30]]).repeat(2, 1)
    assert select_nm(panel, "1:2:v4")[1].indices.tolist() == [1]


def test_out_is_reused() -> None:
    weight = torch.randn(16, 512)
    out = select_nm(weight, "2:4:v4")
    values, structure = out
    version = values._version
    again = select_nm(weight * torch.randn(16, 512), "2:4:v4", out)
    assert again[0] is values
    assert again[1] is structure
    assert values._version > version
    assert same(select_nm(weight, "2:4:v4", out), expected(weight, "2:4:v4"))


def test_graphs_and_parameters() -> None:
    weight = torch.nn.Parameter(torch.randn(8, 16))
    values, structure = select_nm(weight, "2:4")
    assert not values.requires_grad
    assert same((values, structure), expected(weight.detach(), "2:4"))
    y = backend.spmm(torch.eye(16), values, structure)
    masked = weight.detach() * magnitude_mask(weight, "2:4")
    torch.testing.assert_close(y, masked.t().contiguous())


@pytest.mark.parametrize("shape", [(0, 8), (4, 0), (0, 0)])
def test_empty(shape: tuple[int, int]) -> None:
    values, structure = select_nm(torch.zeros(shape), "2:4")
    assert len(values) == len(structure.indices) == 0
    add_pruned_(torch.zeros(shape), torch.zeros(shape), 1.0, structure)
    assert mask_difference(structure, structure) == 0


@functools.cache
def structures(rows: int, cols: int) -> list[tuple[Tensor, Structure]]:
    """Masks of several patterns with their structures, with and without pointers."""
    found = []
    for text in ("2:4", "1:4", "2:8:v4", "3:5:v8", "80%", "50%:v4", "0%", "100%"):
        p = parse_pattern(text)
        mask = magnitude_mask(torch.randn(rows, cols), p)
        n, m = (p.n, p.m) if isinstance(p, NM) else (0, 0)
        found.append((mask, backend.encode(mask, p.panel, n, m)))
    return found


TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_pruned(isa: str, dtype: torch.dtype) -> None:
    backend.use_isa(isa)
    for mask, structure in structures(24, 1080):
        out, source = torch.randn(24, 1080).to(dtype), torch.randn(24, 1080).to(dtype)
        want = torch.where(mask, out.double(), out.double() + 0.3 * source.double())
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            got = out.clone()
            assert add_pruned_(got, source, 0.3, structure) is got
            results.append(got)
        assert torch.equal(*results)
        assert torch.equal(results[0][mask], out[mask])
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(
            results[0], want.to(dtype), rtol=tolerance, atol=tolerance, msg=str(structure.layout)
        )
        assert (~mask).sum() == 0 or not torch.equal(results[0], out)


def test_add_pruned_is_the_same_on_every_isa() -> None:
    _, structure = select_nm(torch.randn(8, 520), "2:8")
    for dtype in (torch.float32, torch.bfloat16):
        out, source = torch.randn(8, 520).to(dtype), torch.randn(8, 520).to(dtype)
        results = []
        for isa in ISAS:
            backend.use_isa(isa)
            results.append(add_pruned_(out.clone(), source, 2e-4, structure))
        assert all(torch.equal(results[0], r) for r in results)


def test_add_pruned_touches_no_kept_entry() -> None:
    weight = torch.tensor([[math.nan, -0.0, 1.0, 2.0]])
    mask = torch.tensor([[True, True, False, False]])
    structure = backend.encode(mask, 1, 2, 4)
    source = torch.tensor([[1.0, math.nan, math.nan, 1.0]])
    add_pruned_(weight, source, 1.0, structure)
    assert math.isnan(weight[0, 0])
    assert math.copysign(1, weight[0, 1]) == -1
    assert math.isnan(weight[0, 2])
    assert weight[0, 3] == 3


def test_add_pruned_bf16_rounds_to_even_and_keeps_nan() -> None:
    structure = backend.encode(torch.zeros(1, 6, dtype=torch.bool), 1)
    source = torch.tensor([[1.0, 3.0, 1.0, math.nan, math.inf, -3e38]], dtype=torch.bfloat16)
    out = torch.tensor([[256.0, 256.0, 512.0, 1.0, 1.0, -3e38]], dtype=torch.bfloat16)
    want = out + source
    torch.testing.assert_close(
        add_pruned_(out, source, 1.0, structure), want, rtol=0, atol=0, equal_nan=True
    )


def test_add_pruned_aliases_and_strides() -> None:
    mask, structure = structures(40, 40)[1]
    base = torch.randn(41, 40)
    plain = torch.where(mask, base[:40], base[:40] + 0.5 * base[:40])
    own = base.clone()[:40]
    torch.testing.assert_close(add_pruned_(own, own, 0.5, structure), plain)
    turned = base[:40].t().contiguous().t()
    before = turned._version
    torch.testing.assert_close(add_pruned_(turned, turned, 0.5, structure), plain)
    assert turned._version > before
    shifted = torch.where(mask, base[1:], base[1:] + 0.5 * base[:40])
    moved = base.clone()
    torch.testing.assert_close(add_pruned_(moved[1:], moved[:40], 0.5, structure), shifted)
    wide = torch.randn(40, 100)
    want = torch.where(mask, wide[:, 7:47], wide[:, 7:47] + 0.5 * base[:40])
    add_pruned_(wide[:, 7:47], base[:40], 0.5, structure)
    torch.testing.assert_close(wide[:, 7:47], want)
    source = torch.randn(1, 40)
    want = torch.where(mask, base[:40], base[:40] - source)
    torch.testing.assert_close(
        add_pruned_(base.clone()[:40], source.expand(40, 40), -1.0, structure), want
    )


@pytest.mark.parametrize("isa", ISAS)
def test_mask_difference(isa: str) -> None:
    backend.use_isa(isa)
    every = structures(24, 1080) + structures(24, 1080)
    compared = 0
    for a_mask, a in every:
        for b_mask, b in every:
            if (a.layout.vector, a.layout.block_cols) == (b.layout.vector, b.layout.block_cols):
                assert mask_difference(a, b) == int((a_mask ^ b_mask).sum())
                compared += 1
    assert compared > 60


def test_bad_input() -> None:
    weight = torch.randn(8, 16)
    values, structure = select_nm(weight, "2:4")
    indices = structure.indices
    other = select_nm(weight, "1:4")
    cases: list[tuple[type[GossamerError], str, Callable[[], object]]] = [
        (PatternError, "packs N:M", lambda: select_nm(weight, "50%")),
        (PatternError, "multiple", lambda: select_nm(weight[:, :10], "2:4")),
        (PatternError, "multiple", lambda: select_nm(weight[:6], "2:4:v4")),
        (DTypeError, "float16", lambda: select_nm(weight.half(), "2:4")),
        (DTypeError, "int64", lambda: select_nm(weight.long(), "2:4")),
        (DTypeError, "list", lambda: select_nm([[1.0] * 4], "2:4")),  # type: ignore[arg-type]
        (DTypeError, "layout", lambda: select_nm(weight.to_sparse(), "2:4")),
        (ShapeError, "2 dimensions", lambda: select_nm(weight[0], "2:4")),
        (DeviceError, "meta", lambda: select_nm(weight.to("meta"), "2:4")),
        (ShapeError, "this selection", lambda: select_nm(weight, "2:4", other)),
        (DTypeError, "pair", lambda: select_nm(weight, "2:4", (values,))),  # type: ignore[arg-type]
        (DTypeError, "float64", lambda: select_nm(weight, "2:4", (values.double(), structure))),
        (ShapeError, "64", lambda: select_nm(weight, "2:4", (values[1:], structure))),
        (
            ShapeError,
            "64",
            lambda: select_nm(weight, "2:4", (values, structure._replace(indices=indices[1:]))),
        ),
        (
            ArgumentError,
            "shares memory",
            lambda: select_nm(weight, "2:4", (weight.view(-1)[:64], structure)),
        ),
        (
            ShapeError,
            "structure is of",
            lambda: add_pruned_(weight.t(), weight.t(), 1.0, structure),
        ),
        (ShapeError, "source has", lambda: add_pruned_(weight, weight[:4], 1.0, structure)),
        (
            DTypeError,
            "must be the same",
            lambda: add_pruned_(weight, weight.double(), 1.0, structure),
        ),
        (
            ArgumentError,
            "share memory",
            lambda: add_pruned_(weight[:1].expand(8, 16), weight, 1.0, structure),
        ),
        (DTypeError, "Structure", lambda: add_pruned_(weight, weight, 1.0, None)),  # type: ignore[arg-type]
        (
            StructureError,
            "indices",
            lambda: add_pruned_(weight, weight, 1.0, structure._replace(indices=indices[1:])),
        ),
        (ShapeError, "differ", lambda: mask_difference(structure, select_nm(weight, "2:4:v4")[1])),
        (ShapeError, "differ", lambda: mask_difference(structure, select_nm(weight[:4], "2:4")[1])),
        (DTypeError, "Structure", lambda: mask_difference(structure, (1, 2))),  # type: ignore[arg-type]
    ]
    before = weight.clone()
    for error, text, call in cases:
        with pytest.raises(error, match=text):
            call()
    assert torch.equal(weight, before)
    wild = structure._replace(indices=torch.full_like(indices, 255))
    with pytest.raises(StructureError, match="out of range"):
        add_pruned_(torch.zeros(8, 16), weight, 1.0, wild)
    with pytest.raises(StructureError, match="out of range"):
        mask_difference(structure, wild)
