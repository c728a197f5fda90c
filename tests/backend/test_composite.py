"""The products and selections in torch operators, and the CPU's functions on copies of arguments.

They serve devices that the tests have not; all but what a device does is the same on the CPU, and a
fake device finds what would wait for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import gossamer
from gossamer import SparseLinear, backend, masks
from gossamer.backend import Structure, composite, registry
from gossamer.backend.composite import places
from gossamer.backend.composite.host import Host
from gossamer.backend.convolutions import convolve, convolve_input, convolve_weight
from support import other_backends
from support.convolutions import CASES, Case
from support.kernel_cases import (
    DTYPES,
    VERBS,
    check,
    expected_verb,
    make_weight,
    random,
    run_verb,
    same_bits,
)

CORE = registry.module_of(None)
MASKS = ("2:4", "1:16", "3:5", "0.3", "holes")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The composite serves the CPU, and what it leaves to the CPU runs on copies."""
    monkeypatch.setattr(Host, "away", staticmethod(Host.away))
    other_backends.serve_the_cpu("composite")
    yield
    backend.unregister("cpu")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("vector", [1, 4, 8])
def test_products(served: None, vector: int, kind: str, dtype: torch.dtype) -> None:
    cols = 330 if kind == "3:5" else 336
    for rows, batch, strided in ((24, 5, False), (8, 1, True), (40, 33, True)):
        weight = make_weight(rows, cols, vector, kind, dtype)
        x, g = random(batch, cols, dtype=dtype, seed=1), random(batch, rows, dtype=dtype, seed=2)
        bias = random(rows, dtype=dtype, seed=3)
        if strided:
            x, g = x.T.contiguous().T, g.repeat(1, 2)[:, ::2].contiguous()
        for verb in VERBS:
            expected = expected_verb(verb, weight, x, g, bias)
            for name, got in run_verb(verb, weight, x, g, bias).items():
                check(f"{name}, {kind}, v{vector}", got, expected)


def test_a_transpose_that_lacks_entries(served: None) -> None:
    weight = make_weight(16, 32, 4, "2:4", torch.float64)
    pruned = masks.double_prune(weight.values, weight.structure, 2, 4)
    g = random(5, 16, dtype=torch.float64, seed=1)
    kept = backend.mask(pruned.structure).T
    assert kept.sum() < weight.mask.sum()
    got = backend.spmm_t(g, weight.values, weight.structure, pruned)
    torch.testing.assert_close(got, g @ (weight.dense * kept))


@pytest.mark.parametrize("rows", [0, 8])
def test_nothing_to_multiply(served: None, rows: int) -> None:
    structure = backend.encode(torch.zeros(rows, 12, dtype=torch.bool), 1)
    values, bias = torch.zeros(0), torch.ones(rows)
    assert backend.spmm(torch.ones(3, 12), values, structure, bias).tolist() == [[1.0] * rows] * 3
    assert backend.spmm_t(torch.ones(3, rows), values, structure).tolist() == [[0.0] * 12] * 3
    assert backend.sddmm(torch.ones(0, rows), torch.ones(0, 12), structure).shape == (0,)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("vector", [1, 4, 8])
def test_structure(served: None, vector: int, kind: str) -> None:
    weight = make_weight(24, 330 if kind == "3:5" else 336, vector, kind, torch.float32)
    ours, structure = CORE.products.coordinates(*weight.structure), weight.structure
    assert torch.equal(places.coordinates(*structure), torch.from_numpy(ours))
    assert same_bits(backend.scatter(weight.values, structure), weight.dense)
    assert same_bits(backend.gather(weight.dense, structure), weight.values)


def test_whatever_a_structure_holds_no_place_is_outside() -> None:
    generator = torch.Generator().manual_seed(0)
    for kind, vector in (("0.3", 4), ("2:4", 8), ("3:5", 1), ("holes", 8)):
        cols = 330 if kind == "3:5" else 300
        layout, indices, indptr = make_weight(24, cols, vector, kind, torch.float32).structure
        for _ in range(20):
            ids = torch.randint(256, indices.shape, dtype=torch.uint8, generator=generator)
            pointers = indptr
            if indptr is not None:
                pointers = torch.randint(
                    -(2**31), 2**31 - 1, indptr.shape, dtype=torch.int32, generator=generator
                )
            at = places.coordinates(layout, ids, pointers)
            assert len(at) == len(ids) * vector
            assert 0 <= int(at.min()) <= int(at.max()) < 24 * cols


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("pattern", ["2:4", "1:4:v4", "3:5:v8", "2:4:v16", "1:16", "7:8"])
def test_a_selection_has_the_bits_of_the_cpu(
    served: None, pattern: str, dtype: torch.dtype
) -> None:
    cols = 290 if pattern.startswith("3:5") else 304
    weight = random(32, cols, dtype=dtype, seed=4)
    weight[:, 0:279:3] = -weight[:, 1:279:3]  # equal magnitudes
    weight[3, 5], weight[4, 9], weight[17] = torch.nan, -torch.inf, 0.0
    values, structure = masks.select_nm(weight, pattern)
    backend.unregister("cpu")
    ours, expected = masks.select_nm(weight, pattern)
    assert same_bits(values, ours)
    assert torch.equal(structure.indices, expected.indices)
    for alpha in (0.5, -2e-4):
        source, out = random(32, cols, dtype=dtype, seed=5), random(32, cols, dtype=dtype, seed=6)
        theirs = out.clone()
        composite.masks.add_pruned(*structure, theirs, source, alpha)
        masks.add_pruned_(out, source, alpha, structure)
        assert same_bits(theirs, out)


UNEVEN = Case(8, 16, (7, 6), (4, 2), (1, 3), (2, 0), (1, 2))


@pytest.mark.parametrize("case", [*CASES, UNEVEN], ids=str)
def test_convolutions(served: None, case: Case) -> None:
    window = case.window
    if case is UNEVEN:  # "same" with an even kernel
        window = window._replace(behind=(1, 3))
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(case.out, case.cols, generator=generator) < 0.4
    structure = backend.encode(mask, 1)
    values = random(structure.nnz, dtype=torch.float64, seed=1)
    x = random(case.images, case.channels, *case.size, dtype=torch.float64, seed=2)
    bias = random(case.out, dtype=torch.float64, seed=3)
    transposed = backend.transpose(structure)

    def results() -> list[Tensor]:
        y = convolve(x, values, structure, window, bias)
        g = random(*y.shape, dtype=torch.float64, seed=4)
        return [
            y,
            convolve_input(g, values, structure, window, case.size),
            convolve_input(g, values, structure, window, case.size, transposed),
            convolve_weight(g, x, structure, window),
        ]

    found = results()
    backend.unregister("cpu")
    for got, ours in zip(found, results(), strict=True):
        torch.testing.assert_close(got, ours, rtol=1e-10, atol=1e-10)


def test_a_training_is_that_of_the_cpu(served: None) -> None:
    def trained() -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).double()
        recipe = gossamer.recipes.make("rigl", every=2)
        model = recipe.prepare(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        recipe.attach(model, optimizer, total_steps=8)
        x = torch.randn(16, 32, dtype=torch.float64)
        for _ in range(8):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return list(model.state_dict().values())

    found = trained()
    backend.unregister("cpu")
    for got, ours in zip(found, trained(), strict=True):
        torch.testing.assert_close(got, ours)


def test_what_a_function_writes_is_copied_back(served: None) -> None:
    seen: list[tuple[Any, ...]] = []

    class Module:
        @staticmethod
        def write(a: Tensor, pair: list[Tensor], b: Tensor) -> tuple[Any, ...]:
            seen.append((a, *pair, b))
            a.mul_(2)
            b.add_(1)
            pair[1].fill_(7)
            return b, b.numpy()[:1], 3

    a, b, c = torch.ones(3), torch.zeros(2, 2).T, torch.ones(1)
    found = Host(Module).write(a, [c, b], a)
    assert not any(t.data_ptr() in {x.data_ptr() for x in (a, b, c)} for t in seen[0])
    assert (a.tolist(), c.tolist()) == ([3.0] * 3, [1.0])  # one copy of a, which is given twice
    assert b.tolist() == [[7.0, 7.0], [7.0, 7.0]]
    assert found[0] is a
    assert isinstance(found[1], Tensor)
    assert found[2] == 3


def test_topics_on_copies(served: None) -> None:
    x = torch.tensor([3.0, -1.0, 2.0])
    gossamer.prox.L1(0.5).prox_(x)
    assert x.tolist() == [2.5, -0.5, 1.5]
    structure = backend.encode(torch.tensor([[True, False, True]]), 1)
    turned = backend.transpose(structure)
    assert backend.mask(turned.structure).tolist() == [[True], [False], [True]]
    with pytest.raises(gossamer.StructureError):
        backend.validate(structure._replace(indices=structure.indices.flip(0)))


BAD = [
    ("x", torch.ones(3, 15), gossamer.ShapeError, "x is 3 x 15; needed is batch x 16"),
    ("x", torch.ones(16), gossamer.ShapeError, "x has 1 dimensions; 2 are needed"),
    ("x", torch.ones(3, 16).double(), gossamer.DTypeError, "float64 and values float32; one call"),
    ("x", torch.ones(3, 16).long(), gossamer.DTypeError, "int64; float32, float64 or bfloat16"),
    ("values", torch.ones(63), gossamer.ShapeError, "contiguous vector of 64 elements"),
    ("values", torch.ones(128)[::2], gossamer.ShapeError, "contiguous vector of 64 elements"),
    ("bias", torch.ones(7), gossamer.ShapeError, "bias has 7 elements; the weight has 8 rows"),
    ("bias", torch.ones(8).double(), gossamer.DTypeError, "bias has dtype float64; float32"),
    ("indices", torch.ones(63, dtype=torch.uint8), gossamer.StructureError, "64 are needed"),
    ("indices", torch.ones(64), gossamer.DTypeError, "indices has dtype float32; uint8"),
    ("indptr", torch.ones(9).int(), gossamer.StructureError, "N:M layout; pass None"),
]


@pytest.mark.parametrize(("name", "given", "error", "text"), BAD)
def test_what_does_not_fit_is_named(
    served: None, name: str, given: Tensor, error: type[Exception], text: str
) -> None:
    structure = make_weight(8, 16, 1, "2:4", torch.float32).structure
    fits: dict[str, Any] = {"x": torch.ones(3, 16), "values": torch.ones(64), "bias": None}
    fits |= {"indices": structure.indices, "indptr": None, name: given}
    damaged = Structure(structure.layout, fits["indices"], fits["indptr"])
    with pytest.raises(error, match=text):
        backend.spmm(fits["x"], fits["values"], damaged, fits["bias"])


@pytest.mark.parametrize("kind", ["2:4", "0.3"])
def test_no_call_waits_for_the_device(kind: str) -> None:
    """A fake tensor has no data: whoever asks for some gets an error."""
    weight = make_weight(24, 336, 4, kind, torch.float32)
    select = masks.select_nm(weight.dense, "2:4:v4")[1]
    products = composite.products
    with FakeTensorMode() as mode:

        def fake(*xs: Any) -> list[Any]:
            return [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in xs]

        values, *parts = fake(weight.values, *weight.structure)
        turned = fake(*weight.transposed.structure, weight.transposed.perm)
        x, y, dense = torch.empty(5, 336), torch.empty(5, 24), torch.empty(24, 336)
        products.spmm(x, values, *parts, torch.empty(24), y)
        products.spmm_t(y, values, *parts, x)
        products.spmm_t_packed(y, values, *parts, *turned, x)
        products.sddmm(y, x, *parts, values)
        products.scatter(values, *parts, dense)
        products.gather(dense, *parts, values)
        (ids,) = fake(select.indices)
        composite.masks.select(select.layout, 1, dense, torch.empty(len(ids) * 4), ids)
        composite.masks.add_pruned(*parts, dense, dense.clone(), 0.5)
        with pytest.raises(gossamer.DeviceError, match="x is on cuda:0 and values on cpu"):
            products.spmm(torch.empty(5, 336, device="cuda"), values, *parts, None, y)
        with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
            values.sum().item()  # what a wait would be


def test_operators_know_the_device() -> None:
    """The fake kernels on a device that is not there."""
    layer = SparseLinear(16, 8, pattern="2:4")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        layer.to_empty(device="cuda")
        x, weight = torch.empty(3, 16, device="cuda"), layer.weight
        y = layer(x)
        assert (y.device.type, y.shape) == ("cuda", (3, 8))
        assert gossamer.spmm_t(y, weight).device.type == "cuda"
        assert gossamer.sddmm(y, x, weight).shape == (64,)
