"""What the kernels promise to the bit: strides, threads, tiles and neighbours change nothing, and
NaN, infinity, subnormals and the rounding of bfloat16 are where arithmetic puts them."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gossamer import backend
from support.grids import covering
from support.kernel_cases import (
    DTYPES,
    VERBS,
    WIDE,
    Weight,
    make_weight,
    random,
    run_verb,
    same_bits,
    vector_of,
)

ISAS = backend.isas()
LAYOUTS = ["v1", "v4", "v8"]
CASES = [
    *itertools.product(LAYOUTS, DTYPES),
    *itertools.product(WIDE[:3], ["bfloat16"]),
]
DENSITIES = ["0.3", "0.03"]  # few entries a row are taken with a tile and an order of their own
NAN, INF = float("nan"), float("inf")


# Views that hold the numbers of a [batch, features] matrix, or fewer numbers, in other strides.
def _column_major(x: Tensor) -> Tensor:
    return x.T.contiguous().T


def _sliced(x: Tensor) -> Tensor:
    wide = torch.full((2 * x.shape[0] + 1, 3 * x.shape[1] + 2), NAN, dtype=x.dtype)
    view = wide[1::2, 2::3]
    view.copy_(x)
    return view


def _padded_rows(x: Tensor) -> Tensor:
    wide = torch.full((x.shape[0], x.shape[1] + 7), NAN, dtype=x.dtype)
    view = wide[:, 3:-4]
    view.copy_(x)
    return view


def _padded_columns(x: Tensor) -> Tensor:
    return _padded_rows(x.T.contiguous()).T


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "column-major": _column_major,
    "sliced": _sliced,
    "padded rows": _padded_rows,
    "padded columns": _padded_columns,
    "one row repeated": lambda x: x[:1].expand(x.shape),
    "one column repeated": lambda x: x[:, :1].expand(x.shape),
    "one number": lambda x: x[0, 0].expand(x.shape),
    "odd address": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "overlapping rows": lambda x: x.flatten().as_strided(x.shape, (1, 1)),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_strides(isa: str, verb: str, dtype: str) -> None:
    backend.use_isa(isa)
    wide = [(16, 9), (32, 70)] if dtype == "bfloat16" else []
    for vector, batch in [(1, 37), (4, 3), (4, 70), (8, 8), (8, 19), *wide]:
        weight = make_weight(3 * vector, 300, vector, "0.4", DTYPES[dtype])
        plain_x = random(batch, weight.cols, dtype=DTYPES[dtype], seed=1)
        plain_g = random(batch, weight.rows, dtype=DTYPES[dtype], seed=2)
        for name, view in VIEWS.items():
            x, g = view(plain_x), view(plain_g)
            assert batch == 1 or not x.is_contiguous() or name == "odd address"
            strided = run_verb(verb, weight, x, g)
            dense = run_verb(verb, weight, x.contiguous(), g.contiguous())
            for way in dense:
                assert same_bits(strided[way], dense[way]), f"{way}, {name}, vector {vector}"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy_strides(isa: str, verb: str, dtype: Any) -> None:
    backend.use_isa(isa)
    views = [
        lambda x: x[::-1],
        lambda x: x[:, ::-1],
        lambda x: x[::-1, ::-1],
        lambda x: np.asfortranarray(x)[::-1],
        lambda x: np.broadcast_to(x[0], x.shape),
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    ]
    for vector, batch in ((1, 21), (4, 2), (8, 70)):
        torch_dtype = torch.float32 if dtype is np.float32 else torch.float64
        weight = make_weight(3 * vector, 300, vector, "0.4", torch_dtype)
        for number, view in enumerate(views):
            x = view(random(batch, weight.cols, dtype=torch_dtype, seed=1).numpy())
            g = view(random(batch, weight.rows, dtype=torch_dtype, seed=2).numpy())
            strided = run_verb(verb, weight, x, g)
            dense = run_verb(verb, weight, x.copy(), g.copy())
            for way in dense:
                assert same_bits(strided[way], dense[way]), f"{way}, view {number}"


# Tiles: none left over, one, an odd number, more than four a thread; and the few-row kernel.
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("layout", "dtype"), CASES)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.slow
def test_threads_change_no_bit(isa: str, layout: str, dtype: str, density: str) -> None:
    backend.use_isa(isa)
    fast = isa in ("avx512", "avx2", "neon")
    vector = vector_of(layout)
    weight = make_weight(520 // vector * vector, 776, vector, density, DTYPES[dtype])
    batches = (3, 8, 17, 64, 129, 300) if fast else (3, 17, 65)
    assert weight.structure.nnz * max(batches) > 2**18, "too little work to be shared"
    for batch in batches:
        x = random(batch, weight.cols, dtype=DTYPES[dtype], seed=1)
        g = random(batch, weight.rows, dtype=DTYPES[dtype], seed=2)
        for verb in VERBS:
            torch.set_num_threads(1)
            alone = run_verb(verb, weight, x, g)
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                assert backend.info()["threads"] == threads
                shared = run_verb(verb, weight, x, g)
                for way in alone:
                    assert same_bits(alone[way], shared[way]), f"{way}, {threads} threads, {batch}"


@pytest.mark.parametrize(("isa", "case", "density"), covering(ISAS, CASES, DENSITIES, whole=2))
def test_a_row_does_not_depend_on_the_others(isa: str, case: tuple[str, str], density: str) -> None:
    layout, dtype = case
    backend.use_isa(isa)
    vector = vector_of(layout)
    weight = make_weight(max(40 // vector, 3) * vector, 300, vector, density, DTYPES[dtype])
    for batch in (2, 5, 9, 37, 70):
        x = random(batch, weight.cols, dtype=DTYPES[dtype], seed=1)
        g = random(batch, weight.rows, dtype=DTYPES[dtype], seed=2)
        for kept in (0, batch // 2, batch - 1):
            for stranger in (0.0, 3.0, NAN, INF):
                others_x, others_g = torch.full_like(x, stranger), torch.full_like(g, stranger)
                others_x[kept], others_g[kept] = x[kept], g[kept]
                for verb in ("spmm", "spmm_t"):
                    alone = run_verb(verb, weight, x, g)
                    among = run_verb(verb, weight, others_x, others_g)
                    for way in alone:
                        assert same_bits(alone[way][kept], among[way][kept]), f"{way}, {batch}"


@pytest.mark.parametrize(("isa", "case", "density"), covering(ISAS, CASES, DENSITIES, whole=2))
def test_a_row_does_not_depend_on_its_tile(isa: str, case: tuple[str, str], density: str) -> None:
    layout, dtype = case
    # Up to 8 rows may go through the kernel for few rows, which sums in another order.
    backend.use_isa(isa)
    vector = vector_of(layout)
    weight = make_weight(max(40 // vector, 3) * vector, 300, vector, density, DTYPES[dtype])
    x = random(130, weight.cols, dtype=DTYPES[dtype], seed=1)
    g = random(130, weight.rows, dtype=DTYPES[dtype], seed=2)
    for verb in ("spmm", "spmm_t"):
        whole = run_verb(verb, weight, x, g)
        assert all(way.isfinite().all() and way.any() for way in whole.values())
        for first, last in ((0, 9), (0, 17), (5, 38), (1, 130), (60, 125)):
            part = run_verb(verb, weight, x[first:last], g[first:last])
            for way in whole:
                assert same_bits(whole[way][first:last], part[way]), f"{way}, {first}:{last}"


def poison_scratch(dtype: torch.dtype) -> None:
    """Leaves NaN in the memory that the next calls pack into."""
    weight = make_weight(64, 1000, 4, "0.5", dtype)
    x = torch.full((130, 1000), NAN, dtype=dtype)
    g = torch.full((130, 64), NAN, dtype=dtype)
    for verb in VERBS:
        run_verb(verb, weight, x, g)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("layout", "dtype"), CASES)
@pytest.mark.slow
def test_nothing_remains_of_earlier_calls(isa: str, layout: str, dtype: str) -> None:
    backend.use_isa(isa)
    vector = vector_of(layout)
    for kind in ("0.3", "3:5", "holes"):
        weight = make_weight(3 * vector, 265, vector, kind, DTYPES[dtype])
        for batch in (1, 2, 3, 9, 33, 65):
            poison_scratch(DTYPES[dtype])
            x = random(batch, weight.cols, dtype=DTYPES[dtype], seed=1)
            g = random(batch, weight.rows, dtype=DTYPES[dtype], seed=2)
            for verb in VERBS:
                for way, result in run_verb(verb, weight, x, g).items():
                    assert result.isfinite().all(), f"{way}, {kind}, batch {batch}"


def touched(weight: Weight, verb: str, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Where a result is not finite, as a matrix."""
    found = {}
    for way, result in run_verb(verb, weight, x, g).items():
        if verb == "sddmm":
            result = backend.scatter(result, weight.structure)
        found[way] = ~result.isfinite()
    return found


@pytest.mark.parametrize(("isa", "case", "bad"), covering(ISAS, CASES, [NAN, INF, -INF], whole=2))
def test_nan_and_infinity_stay_where_they_belong(
    isa: str, case: tuple[str, str], bad: float
) -> None:
    layout, dtype = case
    backend.use_isa(isa)
    vector = vector_of(layout)
    weight = make_weight(4 * vector, 290, vector, "0.4", DTYPES[dtype])
    mask = weight.mask
    row = int(mask.any(1).nonzero()[-1])
    for batch, b in ((1, 0), (3, 2), (21, 20), (70, 64)):
        for col in (0, 256, 289):
            x = random(batch, weight.cols, dtype=DTYPES[dtype], seed=1)
            g = random(batch, weight.rows, dtype=DTYPES[dtype], seed=2)
            x[b, col] = bad
            where = torch.zeros(batch, weight.rows, dtype=torch.bool)
            where[b] = mask[:, col]
            for way, found in touched(weight, "spmm", x, g).items():
                assert torch.equal(found, where), way
            where = torch.zeros_like(mask)
            where[:, col] = mask[:, col]
            for way, found in touched(weight, "sddmm", x, g).items():
                assert torch.equal(found, where), way
            x[b, col], g[b, row] = 1, bad
            where = torch.zeros(batch, weight.cols, dtype=torch.bool)
            where[b] = mask[row]
            for way, found in touched(weight, "spmm_t", x, g).items():
                assert torch.equal(found, where), way
            where = torch.zeros_like(mask)
            where[row] = mask[row]
            for way, found in touched(weight, "sddmm", x, g).items():
                assert torch.equal(found, where), way


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("layout", "dtype"), CASES)
def test_a_bad_value_stays_in_its_row(isa: str, layout: str, dtype: str) -> None:
    backend.use_isa(isa)
    vector = vector_of(layout)
    weight = make_weight(3 * vector, 290, vector, "0.4", DTYPES[dtype])
    at = backend.coordinates(weight.structure)
    for position in (0, 1, len(at) - 1):
        values = weight.values.clone()
        values[position] = NAN
        row, col = divmod(int(at[position]), weight.cols)
        for batch in (1, 5, 33):
            y = backend.spmm(torch.ones(batch, 290, dtype=values.dtype), values, weight.structure)
            assert torch.equal(y.isnan().any(0).nonzero().flatten(), torch.tensor([row]))
            g = torch.ones(batch, weight.rows, dtype=values.dtype)
            for transposed in (None, weight.transposed):
                dx = backend.spmm_t(g, values, weight.structure, transposed)
                assert torch.equal(dx.isnan().any(0).nonzero().flatten(), torch.tensor([col]))


def same_numbers(isa: str, result: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Equal numbers; vdpbf16ps, tdpbf16ps and bfdot may take subnormal ones for zero."""
    if isa in ("amx", "avx512bf16", "neonbf16") and result.dtype == torch.bfloat16:
        tiny = torch.finfo(torch.bfloat16).tiny
        result, wanted = (x.masked_fill(x.abs() < tiny, 0.0) for x in (result, wanted))
    return torch.equal(result, wanted)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("layout", "dtype"), CASES)
def test_products_with_one_come_back_unchanged(isa: str, layout: str, dtype: str) -> None:
    # A permutation matrix of ones: subnormal and huge numbers pass through every verb as they are.
    backend.use_isa(isa)
    vector = vector_of(layout)
    torch_dtype = DTYPES[dtype]
    mask = torch.eye(23, 300, dtype=torch.bool).flip(1).repeat_interleave(vector, 0)
    structure = backend.encode(mask, min(vector, 8))
    transposed = backend.transpose(structure)
    first = torch.arange(23 * vector) % vector == 0  # one row a panel is ones, the others zeros
    values = backend.gather((mask & first[:, None]).to(torch_dtype), structure)
    info = torch.finfo(torch_dtype)
    numbers = [info.tiny / 3, -info.tiny / 64, info.max, -info.max, 1.0, -0.0]
    for batch in (1, 2, 19, 66):
        x = torch.tensor(numbers, dtype=torch_dtype)[torch.arange(batch * 300) % 6].view(batch, 300)
        y = backend.spmm(x, values, structure)
        assert same_numbers(isa, y[:, first], x.flip(1)[:, :23])
        g = torch.zeros(batch, 23 * vector, dtype=torch_dtype)
        g[:, first] = x[:, :23]
        for turned in (None, transposed):
            dx = backend.spmm_t(g, values, structure, turned)
            assert same_numbers(isa, dx.flip(1)[:, :23], x[:, :23])
        one = torch.zeros(batch, 300, dtype=torch_dtype)
        one[-1] = 1
        dw = backend.scatter(backend.sddmm(g, one, structure), structure)
        assert same_numbers(isa, dw[first].flip(1).diagonal(), x[-1, :23])


def test_emulated_pairs_have_the_bits_of_the_instruction() -> None:
    # A product of two bfloat16 is exact in float32, so that both round after the same additions. Of
    # sddmm only the words are the same: a register is summed as a tree here and in order there.
    if "avx512bf16" not in ISAS:
        pytest.skip("this processor multiplies no pairs of bfloat16")
    for layout, density in itertools.product(LAYOUTS, DENSITIES):
        vector = vector_of(layout)
        weight = make_weight(5 * vector, 600, vector, density, torch.bfloat16)
        for batch, verb in itertools.product((vector + 1, 33, 150), ("spmm", "spmm_t")):
            x, g = (
                random(batch, n, dtype=torch.bfloat16, seed=n) for n in (weight.cols, weight.rows)
            )
            backend.use_isa("emulated")
            emulated = run_verb(verb, weight, x, g)
            backend.use_isa("avx512bf16")
            for way, result in run_verb(verb, weight, x, g).items():
                assert same_bits(result, emulated[way]), f"{way}, {layout}, {density}, {batch}"


def test_emulated_tiles_have_the_bits_of_the_instruction() -> None:
    if "amx" not in ISAS:
        pytest.skip("this processor has no tiles")
    for layout, density, batch in itertools.product(WIDE, DENSITIES, (9, 33, 600)):
        vector = vector_of(layout)
        weight = make_weight(5 * vector, 600, vector, density, torch.bfloat16)
        x, g = (random(batch, n, dtype=torch.bfloat16, seed=n) for n in (weight.cols, weight.rows))
        for verb in VERBS:
            backend.use_isa("emulated")
            emulated = run_verb(verb, weight, x, g)
            backend.use_isa("amx")
            for way, result in run_verb(verb, weight, x, g).items():
                assert same_bits(result, emulated[way]), f"{way}, {layout}, {density}, {batch}"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", [*LAYOUTS, *WIDE])
def test_an_odd_entry_is_paired_with_nothing(isa: str, layout: str) -> None:
    # Kernels that take two kept columns at once have one too few here: infinity stays infinity.
    backend.use_isa(isa)
    vector = vector_of(layout)
    mask = torch.zeros(vector, 300, dtype=torch.bool)
    mask[:, [3, 7, 11, 270]] = True
    structure = backend.encode(mask, min(vector, 8))
    values = torch.ones(structure.nnz, dtype=torch.bfloat16)
    x = torch.ones(40, 300).bfloat16()
    x[1, 11] = x[2, 270] = INF
    wanted = torch.full((40, vector), 4.0)
    wanted[1:3] = INF
    assert torch.equal(backend.spmm(x, values, structure).float(), wanted)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", [*LAYOUTS, *WIDE])
def test_bfloat16_rounds_once_to_nearest_even(isa: str, layout: str) -> None:
    # Every finite pair x + bias in float32, rounded as torch rounds it: ties, carries, overflow.
    backend.use_isa(isa)
    vector = vector_of(layout)
    mask = torch.ones(vector, 1, dtype=torch.bool)
    structure = backend.encode(mask, min(vector, 8))
    values = torch.ones(vector, dtype=torch.bfloat16)
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = x[x.isfinite()].reshape(-1, 1)
    for bias in (0.0, 2.0**-8, 2.0**-9, 3 * 2.0**-9, 1.0, 2.0**119, -1e38):
        b = torch.full((vector,), bias, dtype=torch.bfloat16)
        exact = (x.float() + b.float()).bfloat16()
        for rows in (x, x[:: len(x) // 3]):  # the second has four rows
            y = backend.spmm(rows, values, structure, b)
            wanted = exact if len(rows) == len(x) else exact[:: len(x) // 3]
            assert same_numbers(isa, y, wanted.expand(-1, vector)), bias
