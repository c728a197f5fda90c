"""Every kernel that a table reports: fast tables against the reference, the reference against
products in float64. Sizes are chosen to meet every tail of every loop."""

import json
import os
import subprocess
import sys
from functools import cache

import pytest
import torch

from gossamer import backend
from support.kernel_cases import (
    DTYPES,
    VERBS,
    WIDE,
    Expected,
    Weight,
    check,
    exact,
    expected_verb,
    make_weight,
    random,
    run_verb,
    same_bits,
    vector_of,
)

ISAS = [isa for isa in backend.isas() if isa != "avx512vnni"]  # has no products
# Tables of some kernels of bfloat16, and those that they leave the rest to.
PAIRS = {"amx": "avx512bf16", "avx512bf16": "avx512", "neonbf16": "neon"}
SERVING = sorted(backend.info()["serving"])
LAYOUTS = sorted({layout for _, layout, _ in SERVING})
TILES = ("v16", "bfloat16")
# "v16" stands for 16 rows and more: kernels of their own take them in several ways.
CASES = [
    *((isa, *case) for isa in ISAS for case in SERVING),
    *((isa, verb, layout, "bfloat16") for isa in ISAS for verb in VERBS for layout in WIDE[1:]),
]

# (rows / vector, cols, kind): a single entry; odd sizes; two blocks; a last block of one column;
# full; one kept entry in fifty; empty rows and columns; groups that do and do not divide 256.
SHAPES = [
    (1, 1, "1"),
    (3, 5, "0.7"),
    (5, 37, "0.6"),
    (9, 300, "0.5"),
    (11, 513, "0.1"),
    (2, 260, "1"),
    (17, 520, "0.02"),
    (6, 290, "holes"),
    (5, 260, "2:4"),
    (3, 276, "1:3"),
    (4, 265, "3:5"),
    (13, 384, "5:64"),
    (2, 272, "8:8"),
    (19, 288, "1:16"),
]
# Two blocks, the last of one column or a part of a group; an odd number of panels and an even one.
FEW_SHAPES = [(11, 513, "0.1"), (4, 265, "3:5")]
BATCHES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 130, 257]


def operands(weight: Weight, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dtype = weight.values.dtype
    x = random(batch, weight.cols, dtype=dtype, seed=batch)
    g = random(batch, weight.rows, dtype=dtype, seed=batch + 1000)
    return x, g, random(weight.rows, dtype=dtype, seed=3)


# Many small products: quickest and steadiest so. test_kernel_bits.py holds that the number of
# threads changes no bit.
pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def reference(verb: str, shape: tuple[int, int, str], vector: int, dtype: str, batch: int) -> dict:
    """Results of the reference table with the tolerance that the float64 formula gives."""
    panels, cols, kind = shape
    weight = make_weight(panels * vector, cols, vector, kind, DTYPES[dtype])
    x, g, bias = operands(weight, batch)
    bias = bias if batch % 2 else None
    backend.use_isa("reference")
    results = run_verb(verb, weight, x, g, bias)
    expected = expected_verb(verb, weight, x, g, bias)
    for name, result in results.items():
        check(f"reference {name} {shape} {batch}", result, expected)
    # The reference rounds its result once, the kernel under test as well.
    tolerance = expected.tolerance * (2 if dtype == "bfloat16" else 1)
    return {name: Expected(exact(r), tolerance) for name, r in results.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("verb", VERBS)
def test_the_formula_is_not_mostly_zeros(verb: str, layout: str) -> None:
    elements = zeros = 0
    for panels, cols, kind in SHAPES:
        vector = vector_of(layout)
        weight = make_weight(panels * vector, cols, vector, kind, torch.float64)
        x, g, _ = operands(weight, 17)
        result = expected_verb(verb, weight, x, g).result
        elements += result.numel()
        zeros += int((result == 0).sum())
    assert zeros < 0.4 * elements, "a comparison with zeros compares little"


def test_the_list_is_whole() -> None:
    expected = {
        (v, layout, d) for v in VERBS for layout in ("v1", "v4", "v8", "v16") for d in DTYPES
    }
    assert set(SERVING) == expected
    assert ISAS[-1] == "reference"
    assert {"portable", "emulated"} <= set(ISAS)


def check_against_reference(
    isa: str, verb: str, layout: str, dtype: str, shapes: list, batches: list[int]
) -> None:
    vector = vector_of(layout)
    for shape in shapes:
        panels, cols, kind = shape
        weight = make_weight(panels * vector, cols, vector, kind, DTYPES[dtype])
        for batch in batches:
            expected = reference(verb, shape, vector, dtype, batch)
            backend.use_isa(isa)
            x, g, bias = operands(weight, batch)
            results = run_verb(verb, weight, x, g, bias if batch % 2 else None)
            for name, result in results.items():
                assert result.dtype == DTYPES[dtype]
                check(f"{isa} {name} {shape} batch {batch}", result, expected[name])


# Every kernel: one to eight rows, a tile and a half.
@pytest.mark.parametrize(("isa", "verb", "layout", "dtype"), CASES)
def test_against_reference_in_few_cases(isa: str, verb: str, layout: str, dtype: str) -> None:
    check_against_reference(isa, verb, layout, dtype, FEW_SHAPES, [1, 3, 8, 97])


@pytest.mark.parametrize(("isa", "verb", "layout", "dtype"), CASES)
@pytest.mark.slow
def test_against_reference(isa: str, verb: str, layout: str, dtype: str) -> None:
    # Wider runs of panels pass the loops of "v16" again; one batch of each kind of tail will do.
    batches = BATCHES[::3] if layout in WIDE[1:] else BATCHES
    check_against_reference(isa, verb, layout, dtype, SHAPES, batches)


# Slabs of 1024 rows with several panels in the last one; a batch that sddmm takes in two passes
# over packed chunks, with many and with few entries a row.
LARGE = [
    (1100, 70, "0.3", 70),
    (1100, 300, "0.04", 140),
    (2052, 260, "1:4", 9),
    (64, 8192, "0.1", 300),
    (64, 8192, "0.01", 300),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("rows", "cols", "kind", "batch"), LARGE)
@pytest.mark.slow
def test_large(
    isa: str, layout: str, verb: str, rows: int, cols: int, kind: str, batch: int
) -> None:
    vector = vector_of(layout)
    weight = make_weight(-(-rows // vector) * vector, cols, vector, kind, torch.float32)
    x, g, bias = operands(weight, batch)
    expected = large_expected(verb, vector, rows, cols, kind, batch)
    backend.use_isa(isa)
    for name, result in run_verb(verb, weight, x, g, bias).items():
        check(f"{isa} {name}", result, expected)


@cache
def large_expected(verb: str, vector: int, rows: int, cols: int, kind: str, batch: int) -> Expected:
    weight = make_weight(-(-rows // vector) * vector, cols, vector, kind, torch.float32)
    return expected_verb(verb, weight, *operands(weight, batch))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_kept(isa: str, layout: str, dtype: str) -> None:
    vector = vector_of(layout)
    weight = make_weight(3 * vector, 300, vector, "0", DTYPES[dtype])
    assert weight.structure.nnz == 0
    backend.use_isa(isa)
    for batch in (1, 9, 70):
        x, g, bias = operands(weight, batch)
        y = backend.spmm(x, weight.values, weight.structure, bias)
        assert torch.equal(y, bias.expand(batch, -1))
        for result in run_verb("spmm_t", weight, x, g).values():
            assert torch.equal(result, torch.zeros(batch, 300, dtype=DTYPES[dtype]))
        assert backend.sddmm(g, x, weight.structure).shape == (0,)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("rows", "cols", "batch"), [(8, 20, 0), (0, 20, 5), (8, 0, 5), (0, 0, 0)])
def test_a_size_of_zero(isa: str, rows: int, cols: int, batch: int) -> None:
    backend.use_isa(isa)
    for vector in (1, 4, 8):
        weight = make_weight(rows, cols, vector, "0.5", torch.float32)
        x, g, bias = operands(weight, batch)
        y = backend.spmm(x, weight.values, weight.structure, bias)
        assert y.shape == (batch, rows)
        if cols == 0:
            assert torch.equal(y, bias.expand(batch, -1))
        for dx in run_verb("spmm_t", weight, x, g).values():
            assert torch.equal(dx, torch.zeros(batch, cols))
        assert torch.equal(backend.sddmm(g, x, weight.structure), torch.zeros(len(weight.values)))


def test_a_forced_table_serves_every_kernel() -> None:
    for isa in backend.isas():
        backend.use_isa(isa)
        assert backend.isa() == backend.info()["isa"] == isa
        if isa not in ISAS:
            isa = "avx512"  # serves what it leaves
        serving = backend.info()["serving"]
        wide = {v for (_, layout, dtype), v in serving.items() if (layout, dtype) == TILES}
        assert wide == {isa}
        if isa == "amx":  # has these alone
            isa, serving = PAIRS[isa], {k: v for k, v in serving.items() if k[1:] != TILES}
        if isa in PAIRS:  # has the products of bfloat16 alone
            assert {serving[k] for k in serving if k[2] != "bfloat16"} == {PAIRS[isa]}
            serving = {k: v for k, v in serving.items() if k[2] == "bfloat16"}
        assert set(serving.values()) == {isa}
    backend.use_isa(None)
    assert backend.isa() == backend.isas()[0]


def test_a_forced_table_really_runs() -> None:
    # Tables differ in how many lanes they sum apart or in whether a multiply-add rounds once, so
    # sddmm over a long batch cannot give the same bits in two of them. Tables of bfloat16 leave
    # float32 to another, and agree with their emulation.
    seen: dict[str, list[torch.Tensor]] = {}
    for isa in ISAS:
        backend.use_isa(isa)
        results = []
        for dtype, vector in ((torch.float32, 4), (torch.bfloat16, 4), (torch.bfloat16, 16)):
            weight = make_weight(10 * vector, 300, vector, "0.5", dtype)
            x, g, _ = operands(weight, 257)
            # What is left of sums that cancel is their rounding, which bfloat16 does not hide.
            results.append(backend.sddmm(torch.cat([g, -g]), torch.cat([x, x]), weight.structure))
        for other, theirs in seen.items():
            equal = [torch.equal(a, b) for a, b in zip(results, theirs, strict=True)]
            assert not all(equal), f"{isa} gives the bits of {other}"
        seen[isa] = results


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.process
def test_environment_variable_forces_a_table() -> None:
    code = "import json; from gossamer import backend; print(json.dumps(backend.info()['isa']))"
    done = run_python(code, GOSSAMER_ISA="emulated")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == "emulated"


@pytest.mark.slow
@pytest.mark.process
def test_a_wrong_table_name_is_told_at_import() -> None:
    done = run_python("import gossamer.backend", GOSSAMER_ISA="sse9")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    for word in ("sse9", "GOSSAMER_ISA", *ISAS):
        assert word in last


def test_numpy_gives_the_bits_of_torch() -> None:
    for dtype in (torch.float32, torch.float64):
        weight = make_weight(20, 300, 4, "0.3", dtype)
        x, g, bias = operands(weight, 33)
        for verb in VERBS:
            ours = run_verb(verb, weight, x, g, bias)
            theirs = run_verb(verb, weight, x.numpy(), g.numpy(), bias.numpy())
            for name in ours:
                assert type(theirs[name]).__module__ == "numpy"
                assert same_bits(ours[name], theirs[name])
