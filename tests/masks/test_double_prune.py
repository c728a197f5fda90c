"""Double pruning: the mask and its packed transpose, and a weight whose backward uses them."""

import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn

import gossamer
from gossamer import SparseLinear, SparseWeight, backend
from gossamer.masks import double_prune, double_prune_mask, magnitude_mask
from gossamer.patterns import NM

PATTERNS = ["1:2", "2:4", "1:4", "2:8", "4:8", "1:16", "3:7", "4:4", "2:8:v4", "2:4:v8", "2:4:v16"]


def oracle(weight: Tensor, rows_mask: Tensor, n: int, m: int) -> Tensor:
    """Of each m rows of a column the n largest that the row mask keeps; the lower row on ties."""
    score = torch.where(rows_mask, weight.double().abs().nan_to_num(nan=torch.inf), -1.0)
    kept = torch.zeros_like(rows_mask)
    for first in range(0, len(score), m):
        order = score[first : first + m].argsort(dim=0, descending=True, stable=True)
        kept[first : first + m].scatter_(0, order[:n], True)
    return kept & rows_mask


def packed_mask(transposed: backend.Transposed) -> Tensor:
    """The mask [rows, cols] that a transpose holds."""
    layout = transposed.structure.layout
    mask = torch.zeros(layout.rows * layout.cols, dtype=torch.bool)
    mask[backend.coordinates(transposed.structure)] = True
    return mask.view(layout.rows, layout.cols).t()


def draw(shape: tuple[int, int], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def build(pattern: str, shape: tuple[int, int] = (48, 112), seed: int = 0, **more) -> SparseWeight:
    more = {"backward": "double_pruned"} | more
    return SparseWeight.from_dense(draw(shape, seed, torch.float64), pattern, **more)


def check(weight: Tensor, pattern: NM) -> None:
    n, m = pattern.n, pattern.m
    rows_mask = magnitude_mask(weight.nan_to_num(nan=torch.inf), pattern)
    structure = backend.encode(rows_mask, pattern.panel, n, m)
    values = backend.gather(weight, structure)
    packed = double_prune(values, structure, n, m)
    backend.validate(packed.structure, packed.perm.numel())
    expected = oracle(weight, rows_mask, n, m)
    assert torch.equal(packed_mask(packed), expected)
    turned = backend.scatter(values[packed.perm], packed.structure).t()
    zero = torch.zeros((), dtype=weight.dtype)
    assert torch.equal(
        turned.nan_to_num(nan=3.0), torch.where(expected, weight, zero).nan_to_num(nan=3.0)
    )
    if not weight.isnan().any():
        assert torch.equal(double_prune_mask(weight, n, m, pattern.vector), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_mask_and_transpose(pattern: str, dtype: torch.dtype) -> None:
    parsed = gossamer.parse_pattern(pattern)
    # More than one block of rows and of columns; rows that end in the middle of a group.
    check(draw((272 + parsed.vector, 40 * parsed.m), 1, dtype), parsed)
    check(draw((16, parsed.m), 2, dtype).mul(2).round(), parsed)  # ties, and zeros that are kept


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.data())
def test_any_size(data: st.DataObject) -> None:
    m = data.draw(st.integers(1, 12))
    pattern = NM(data.draw(st.integers(1, m)), m, data.draw(st.sampled_from([1, 4, 8, 16, 64])))
    shape = (
        pattern.vector * data.draw(st.integers(0, 9)),
        m * data.draw(st.integers(0, 30)),
    )
    weight = draw(shape, data.draw(st.integers(0, 99))).mul(3).round()
    special = torch.tensor([math.nan, math.inf, -math.inf, -0.0])
    at = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.1
    if data.draw(st.booleans()):
        weight[at] = special[torch.arange(int(at.sum())) % 4]
    # The sum of a panel's magnitudes must be a number.
    check(weight if pattern.vector == 1 else weight.nan_to_num(0, 9, -9), pattern)


@pytest.mark.parametrize("pattern", ["1:2", "2:4", "4:8", "2:8", "1:4", "1:8", "1:16"])
def test_share_that_is_lost(pattern: str) -> None:
    """The share of all entries that goes agrees with the formula within 3 standard errors."""
    n, m = map(int, pattern.split(":"))
    s = n / m
    terms = [math.comb(m, j) * s**j * (1 - s) ** (m - j) * (j - n) / m for j in range(n + 1, m + 1)]
    weight = draw((1024, 1024), 3)
    rows = magnitude_mask(weight, pattern)
    kept = double_prune_mask(weight, n, m)
    assert not (kept & ~rows).any()
    assert kept.view(1024 // m, m, 1024).sum(1).max() <= n
    lost = (rows & ~kept).view(1024 // m, m, 1024 // m, m).sum((1, 3)).double() / m**2
    error = lost.std() / math.sqrt(lost.numel())  # tiles of m x m are independent
    assert abs(lost.mean() - sum(terms)) < 3 * error
    known = {"1:2": 0.125, "2:4": 0.09375, "4:8": 0.0684, "2:8": 0.0584, "1:4": 0.0791}
    assert sum(terms) == pytest.approx(known.get(pattern, sum(terms)), abs=5e-5)


def test_threads_do_not_matter() -> None:
    weight = draw((512, 1024), 4)
    structure = backend.encode(magnitude_mask(weight, "2:8"), 1, 2, 8)
    values = backend.gather(weight, structure)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(double_prune(values, structure, 2, 8))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(other.perm, found[0].perm)
        assert torch.equal(other.structure.indices, found[0].structure.indices)
        assert torch.equal(other.structure.indptr, found[0].structure.indptr)


def test_bad_arguments() -> None:
    structure = backend.encode(torch.eye(8, dtype=torch.bool), 1, 1, 8)
    values = torch.ones(8)
    for n, m in [(0, 4), (3, 2), (1, 65), (-1, 1), (2**70, 2**70)]:
        with pytest.raises(gossamer.ArgumentError, match=r"n=.* and m="):
            double_prune(values, structure, n, m)
    with pytest.raises(gossamer.ShapeError, match="8"):
        double_prune(values[:7], structure, 1, 8)
    with pytest.raises(gossamer.DTypeError):
        double_prune(values.int(), structure, 1, 8)
    with pytest.raises(gossamer.DTypeError, match="encode"):
        double_prune(values, "2:4", 1, 8)
    damaged = structure._replace(indices=structure.indices + 9)
    with pytest.raises(gossamer.StructureError):
        double_prune(values, damaged, 1, 8)
    with pytest.raises(gossamer.PatternError):
        double_prune_mask(torch.ones(4, 6), 1, 4)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients(pattern: str) -> None:
    """dX comes from W^{R,C}, dW and db are those of every kept entry, Y is that of W^R."""
    weight = build(pattern)
    n, m = weight.layout.n, weight.layout.m
    dense, kept = weight.to_dense().detach(), double_prune_mask(weight.to_dense(), n, m)
    if weight.layout.vector > 1:
        kept = oracle(dense, weight.mask(), n, m)
    assert torch.equal(packed_mask(weight.transposed), kept)
    assert kept.sum() < weight.nnz or n == m
    bias = torch.randn(48, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 5, 112, dtype=torch.float64, requires_grad=True)
    y = gossamer.spmm(x, weight, bias)
    torch.testing.assert_close(y, x @ dense.t() + bias)
    g = torch.randn_like(y)
    dx, dv, db = torch.autograd.grad(y, (x, weight.values, bias), g)
    torch.testing.assert_close(dx, g @ (dense * kept))
    expected = backend.gather(torch.einsum("abo,abi->oi", g, x).contiguous(), weight.structure)
    torch.testing.assert_close(dv, expected)
    assert dv.count_nonzero() == weight.nnz
    torch.testing.assert_close(db, g.sum((0, 1)))
    # The verb itself is the exact product.
    torch.testing.assert_close(gossamer.spmm_t(g, weight), g @ dense)


@pytest.mark.parametrize("pattern", ["1:4", pytest.param("2:8:v4", marks=pytest.mark.slow)])
def test_roads_agree(pattern: str) -> None:
    weight = build(pattern)
    x = torch.randn(6, 112, dtype=torch.float64)
    g = torch.randn(6, 48, dtype=torch.float64)

    def both(function) -> tuple[Tensor, ...]:
        inputs = x.clone().requires_grad_()
        return torch.autograd.grad(function(inputs), (inputs, weight.values), g)

    eager = both(lambda t: gossamer.spmm(t, weight))
    compiled = torch.compile(lambda t: gossamer.spmm(t, weight), backend="aot_eager")
    for _ in range(3):  # each refresh changes the sizes of the transpose
        eager = both(lambda t: gossamer.spmm(t, weight))
        for got, expected in zip(both(compiled), eager, strict=True):
            assert torch.equal(got, expected)
        with torch.no_grad():
            weight.values.copy_(torch.randn_like(weight.values))
        weight.refresh_transpose()
    eager = both(lambda t: gossamer.spmm(t, weight))
    functional = torch.func.grad(lambda t: (gossamer.spmm(t, weight) * g).sum())(x)
    torch.testing.assert_close(functional, eager[0])
    from gossamer.ops import library

    for got, expected in zip(both(lambda t: library.spmm(t, weight, None)), eager, strict=True):
        assert torch.equal(got, expected)
    torch.library.opcheck(
        torch.ops.gossamer.spmm.default,
        (x.clone().requires_grad_(), weight.values, *library.parts_of(weight), None),
        test_utils=["test_schema", "test_autograd_registration", "test_faketensor"],
    )


@pytest.mark.parametrize("road", ["eager", "library"])
@pytest.mark.parametrize("pattern", ["1:4", "1:4:v4"])
def test_second_derivative_is_of_what_is_computed(pattern: str, road: str) -> None:
    from gossamer.ops import library

    weight = build(pattern, (8, 12))
    kept = oracle(weight.to_dense().detach(), weight.mask(), 1, 4)
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    g = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)

    def sparse() -> Tensor:
        call = gossamer.spmm if road == "eager" else lambda a, b: library.spmm(a, b, None)
        (dx,) = torch.autograd.grad(call(x, weight), x, g, create_graph=True)
        return dx

    def dense() -> Tensor:
        return g @ (weight.to_dense() * kept)

    got = torch.autograd.grad(sparse().square().sum(), (g, weight.values))
    expected = torch.autograd.grad(dense().square().sum(), (g, weight.values))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_refresh() -> None:
    weight = build("2:8")
    x = torch.randn(4, 112, dtype=torch.float64, requires_grad=True)
    g = torch.randn(4, 48, dtype=torch.float64)
    old = packed_mask(weight.transposed)
    waiting = gossamer.spmm(x, weight)
    with torch.no_grad():
        weight.values.data = torch.randn_like(weight.values)
    assert torch.equal(packed_mask(weight.transposed), old), "the mask lags until it is refreshed"
    (lagging,) = torch.autograd.grad(gossamer.spmm(x, weight), x, g)
    torch.testing.assert_close(lagging, g @ (weight.to_dense().detach() * old))
    weight.refresh_transpose()
    new = packed_mask(weight.transposed)
    assert not torch.equal(new, old)
    assert torch.equal(new, oracle(weight.to_dense().detach(), weight.mask(), 2, 8))
    assert torch.equal(torch.autograd.grad(waiting, x, g)[0], lagging)
    exact = build("2:8", backward="exact")
    exact.refresh_transpose()


@pytest.mark.parametrize("pattern", ["1:4", "2:8:v4"])
def test_set_mask(pattern: str) -> None:
    weight, other = build(pattern), build(pattern, seed=5)
    weight.set_mask(other.mask())
    n, m = weight.layout.n, weight.layout.m
    expected = oracle(weight.to_dense().detach(), other.mask(), n, m)
    assert torch.equal(packed_mask(weight.transposed), expected)


def test_a_layer_draws_its_values_before_it_chooses() -> None:
    layer = SparseLinear(32, 32, pattern="1:4", backward="double_pruned")
    weight = layer.weight
    expected = oracle(weight.to_dense().detach(), weight.mask(), 1, 4)
    assert torch.equal(packed_mask(weight.transposed), expected)
    assert "double_pruned" in str(layer)
    swapped = SparseLinear.from_dense(nn.Linear(32, 32), "1:4", backward="double_pruned")
    assert swapped.weight.backward == "double_pruned"
    saved = 5 * (weight.nnz - len(weight.t_perm))
    full = SparseLinear(32, 32, pattern="1:4").weight
    assert weight.structure_nbytes == full.structure_nbytes - saved
    assert saved > 0


KEYS = {"t_indices", "t_indptr", "t_perm"}


@pytest.mark.parametrize("pattern", ["1:4", "2:8:v4"])
def test_state_dict(pattern: str) -> None:
    weight, other = build(pattern), build(pattern, seed=5)
    with torch.no_grad():  # the mask lags behind the values, as it does between two refreshes
        weight.values.mul_(torch.rand_like(weight.values))
    lagging = packed_mask(weight.transposed)
    state = weight.state_dict()
    assert set(state) >= KEYS
    assert other.t_perm.shape != weight.t_perm.shape
    assert str(other.load_state_dict(load(save(state)))) == "<All keys matched successfully>"
    file = io.BytesIO()
    torch.save(weight, file)
    file.seek(0)
    copies = [
        other,
        copy.deepcopy(weight),
        pickle.loads(pickle.dumps(weight)),  # noqa: S301
        torch.load(file, weights_only=False),
    ]
    meta = SparseLinear(112, 48, False, pattern=pattern, device="meta", backward="double_pruned")
    meta.load_state_dict({f"weight.{k}": v for k, v in state.items()}, assign=True)
    copies.append(meta.weight)
    x = torch.randn(4, 112, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(gossamer.spmm(x, weight).sum(), x)
    for twin in copies:
        assert torch.equal(packed_mask(twin.transposed), lagging)
        assert torch.equal(torch.autograd.grad(gossamer.spmm(x, twin).sum(), x)[0], expected)
    assert not KEYS & set(build(pattern, backward="exact").state_dict())
    # A file of an exact weight: the transpose is chosen from the values that were loaded.
    plain = {k: v for k, v in state.items() if k not in KEYS}
    with pytest.raises(RuntimeError, match="t_perm"):
        build(pattern, seed=6).load_state_dict(plain)
    third = build(pattern, seed=6)
    third.load_state_dict(plain, strict=False)
    n, m = weight.layout.n, weight.layout.m
    fresh = oracle(weight.to_dense().detach(), weight.mask(), n, m)
    assert torch.equal(packed_mask(third.transposed), fresh)


def damaged(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    def changed(name: str, at: int, value: int) -> dict[str, Tensor]:
        tensor = state[name].clone()
        tensor[at] = value
        return {**state, name: tensor}

    perm, nnz = state["t_perm"], len(state["values"])
    swapped = perm.clone()
    swapped[[0, 1]] = swapped[[1, 0]]
    return {
        "perm negative": changed("t_perm", 3, -1),
        "perm large": changed("t_perm", 3, nnz),
        "perm of another entry": {**state, "t_perm": swapped},
        "perm short": {**state, "t_perm": perm[:-1]},
        "perm long": {**state, "t_perm": perm.float()},
        "perm is a matrix": {**state, "t_perm": perm[None]},
        "perm is none": {**state, "t_perm": None},
        "indices": changed("t_indices", 2, 255),
        "indices short": {**state, "t_indices": state["t_indices"][:-1]},
        "indptr falls": changed("t_indptr", 2, 100000),
        "indptr short": {**state, "t_indptr": state["t_indptr"][:-1]},
        "indptr negative": changed("t_indptr", 0, -5),
        "a part is missing": {k: v for k, v in state.items() if k != "t_indptr"},
        "other indices": {**state, "indices": build("2:8", seed=9).indices},
        "not pruned": {**state, **exact_parts(state)},
    }


def exact_parts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    (packed, perm) = backend.transpose(build("2:8").structure)
    return {"t_indices": packed.indices, "t_indptr": packed.indptr, "t_perm": perm}


@pytest.mark.parametrize("case", damaged(build("2:8").state_dict()))
def test_damaged_state(case: str) -> None:
    state = damaged(build("2:8").state_dict())[case]
    layer = SparseLinear(112, 48, pattern="2:8", backward="double_pruned", dtype=torch.float64)
    before = copy.deepcopy(layer.state_dict())
    whole = {f"weight.{k}": v for k, v in state.items()} | {"bias": torch.ones(48)}
    for strict in (True, False):
        with pytest.raises(gossamer.StructureError, match=r"weight\."):
            layer.load_state_dict(whole, strict=strict)
    after = layer.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_modes_are_checked() -> None:
    dense = draw((16, 16))
    for pattern in ("75%", "block 4x4 50%"):
        for backward in ("double_pruned", "transposable"):
            with pytest.raises(gossamer.PatternError, match="N:M"):
                SparseWeight.from_dense(dense, pattern, backward=backward)
    with pytest.raises(ValueError, match="double_pruned"):
        SparseWeight.from_dense(dense, "1:4", backward="fast")
    with pytest.raises(ValueError, match="packed"):
        SparseWeight.from_dense(dense, "1:4", transpose="none", backward="double_pruned")


@pytest.mark.parametrize("vector", [1, 4])
def test_transposable(vector: int) -> None:
    dense = draw((32, 32), 2, torch.float64)
    # Shifted diagonals: one of four in each row and each column.
    mask = torch.eye(8, dtype=torch.bool).repeat(4, 4)
    mask = mask.repeat_interleave(vector, 0)[:32] if vector > 1 else mask
    pattern = f"1:8:v{vector}" if vector > 1 else "1:8"
    if vector > 1:
        with pytest.raises(gossamer.StructureError, match="at most 1 of each 8 rows"):
            SparseWeight.from_dense(dense, pattern, mask, backward="transposable")
        return
    weight = SparseWeight.from_dense(dense, pattern, mask, backward="transposable")
    x = torch.randn(3, 32, dtype=torch.float64, requires_grad=True)
    gossamer.spmm(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(3, 32).double() @ (dense * mask))
    before = copy.deepcopy(weight.state_dict())
    other = magnitude_mask(dense, pattern)
    with pytest.raises(gossamer.StructureError, match="transposable_mask"):
        weight.set_mask(other)
    with pytest.raises(gossamer.StructureError, match=r"rows 0\.\.7"):
        SparseWeight.from_dense(dense, pattern, other, backward="transposable")
    with pytest.raises(gossamer.StructureError, match="state dict"):
        weight.load_state_dict(SparseWeight.from_dense(dense, pattern, other).state_dict())
    assert all(torch.equal(weight.state_dict()[k], v) for k, v in before.items())
    weight.set_mask(mask.roll(1, 1))
    assert weight.transposed is not None
