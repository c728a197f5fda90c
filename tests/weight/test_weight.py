"""SparseWeight: from dense and back, its numbers, moving the mask, refusals."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import gossamer
from gossamer import SparseWeight, backend
from gossamer.masks import magnitude_mask, random_mask
from support import oracle
from support.grids import covering

PATTERNS = [*oracle.PATTERNS, *oracle.WIDE]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def dense(pattern: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(oracle.sizes(pattern)).to(dtype)


@pytest.mark.parametrize(("pattern", "dtype"), covering(PATTERNS, DTYPES))
def test_round_trip(pattern: str, dtype: torch.dtype) -> None:
    full = dense(pattern, dtype)
    weight = SparseWeight.from_dense(full, pattern)
    mask = magnitude_mask(full, pattern)
    assert torch.equal(weight.mask(), mask)
    assert torch.equal(weight.to_dense(), full * mask)
    with torch.no_grad():
        assert torch.equal(weight.to_dense(), full * mask)
    assert weight.values.dtype == dtype
    assert weight.shape == full.shape
    assert weight.nnz == gossamer.parse_pattern(pattern).count(*full.shape) == int(mask.sum())
    assert weight.density == weight.nnz / full.numel()
    assert str(weight.pattern) == pattern
    again = SparseWeight.from_dense(weight.to_dense().detach(), pattern, mask=weight.mask())
    assert torch.equal(again.values, weight.values)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_values_stand_where_the_structure_says(pattern: str) -> None:
    full = dense(pattern)
    weight = SparseWeight.from_dense(full, pattern)
    at = backend.coordinates(weight.structure)
    assert torch.equal(weight.values, full.flatten()[at])


def test_it_owns_its_values() -> None:
    full = torch.randn(4, 8)
    weight = SparseWeight.from_dense(full, "0%")
    full.zero_()
    assert weight.values.ne(0).all()


def test_mask_and_score_choose() -> None:
    full = dense("2:4")
    mask = random_mask(full.shape, "2:4", seed=3)
    assert torch.equal(SparseWeight.from_dense(full, "2:4", mask=mask).mask(), mask)
    weight = SparseWeight.from_dense(full, "2:4", score=-full.abs())
    assert not torch.equal(weight.mask(), magnitude_mask(full, "2:4"))
    assert torch.equal(weight.mask(), magnitude_mask(1 / full, "2:4"))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_to_dense_is_differentiable(pattern: str) -> None:
    weight = SparseWeight.from_dense(dense(pattern, torch.float64), pattern)

    def function(_: Tensor) -> Tensor:
        return weight.to_dense().sin()

    assert torch.autograd.gradcheck(function, [weight.values], fast_mode=True)
    assert torch.autograd.gradgradcheck(function, [weight.values], fast_mode=True)


def test_bytes() -> None:
    one = SparseWeight.from_dense(torch.randn(64, 512), "2:4:v4")
    # A byte for each 4 values, and the descriptor; no pointers, no transpose.
    assert one.structure_nbytes == one.nnz // 4 + 64
    assert one.nbytes == one.nnz * 4 + one.structure_nbytes
    packed = SparseWeight.from_dense(torch.randn(64, 512), "90%")
    lean = SparseWeight.from_dense(torch.randn(64, 512), "90%", transpose="none")
    pointers = 4 * (2 * 64 + 1)
    assert lean.structure_nbytes == lean.nnz + pointers + 64
    assert packed.structure_nbytes == lean.structure_nbytes + 5 * packed.nnz + 4 * (512 + 1)
    assert lean.transposed is None
    assert one.transposed is None
    assert packed.transposed is not None


@pytest.mark.parametrize(("pattern", "shape"), [("90%", (3, 0)), ("90%", (0, 5)), ("100%", (4, 5))])
def test_nothing_kept(pattern: str, shape: tuple[int, int]) -> None:
    weight = SparseWeight.from_dense(torch.randn(shape), pattern)
    assert weight.nnz == 0
    y = gossamer.spmm(torch.ones(2, shape[1]), weight, torch.arange(float(shape[0])))
    assert torch.equal(y, torch.arange(float(shape[0])).expand(2, -1))
    y.sum().backward()


@pytest.mark.parametrize(
    ("pattern", "name", "transpose"), covering(PATTERNS, ["AdamW", "SGD"], ["packed", "none"])
)
def test_moving_the_mask(name: str, pattern: str, transpose: str) -> None:
    weight = SparseWeight.from_dense(dense(pattern), pattern, transpose=transpose)
    options = {"amsgrad": True} if name == "AdamW" else {"momentum": 0.9}
    optimizer = getattr(torch.optim, name)(weight.parameters(), lr=0.1, **options)
    for _ in range(2):
        optimizer.zero_grad()
        gossamer.spmm(torch.randn(5, weight.shape[1]), weight).square().sum().backward()
        optimizer.step()
    values = weight.values
    state = {k: t for k, t in optimizer.state[values].items() if t.shape == values.shape}
    assert len(state) == (3 if name == "AdamW" else 1)
    tracked = {"values": values, "grad": values.grad, **state}
    before = {k: backend.scatter(t.detach(), weight.structure) for k, t in tracked.items()}
    buffers = {k: id(b) for k, b in weight.named_buffers()}

    old = weight.mask()
    masks = (random_mask(weight.shape, pattern, seed) for seed in range(99))
    new = next(m for m in masks if (m & old).any() and (m & ~old).any())
    weight.set_mask(new, optimizer)

    assert weight.values is values
    assert buffers == {k: id(b) for k, b in weight.named_buffers()}
    assert torch.equal(weight.mask(), new)
    for key, tensor in tracked.items():
        after = backend.scatter(tensor.detach(), weight.structure)
        assert torch.equal(after, before[key] * (old & new)), key
    x = torch.randn(3, weight.shape[1], requires_grad=True)
    gossamer.spmm(x, weight).sum().backward()
    full = weight.to_dense().detach()
    ones = torch.ones(3, weight.shape[0])
    oracle.assert_close(x.grad, oracle.spmm_t(ones, full), oracle.spmm_t(ones, full.abs()))


def frozen_bytes(weight: SparseWeight) -> dict[str, bytes]:
    tensors = {**dict(weight.named_buffers()), "values": weight.values.detach().view(torch.uint8)}
    return {k: t.numpy().tobytes() for k, t in tensors.items()}


def bad_masks() -> dict[str, Tensor]:
    good = random_mask((8, 12), "2:4", seed=1)
    return {
        "shape": good[:, :8],
        "rank": good[0],
        "a list": good.tolist(),
        "dtype": good.int(),
        "too many": good | random_mask((8, 12), "2:4", seed=2),
        "too few": good & random_mask((8, 12), "2:4", seed=2),
        "a group of 3": good.clone().index_put_(
            (torch.tensor([0] * 8), torch.arange(8)), torch.tensor([1, 1, 1, 0, 1, 0, 0, 0]).bool()
        ),
    }


@pytest.mark.parametrize("case", bad_masks())
def test_a_bad_mask_changes_nothing(case: str) -> None:
    weight = SparseWeight.from_dense(torch.randn(8, 12), "2:4")
    before = frozen_bytes(weight)
    with pytest.raises(gossamer.GossamerError):
        weight.set_mask(bad_masks()[case])
    assert frozen_bytes(weight) == before
    with pytest.raises(gossamer.GossamerError):
        SparseWeight.from_dense(torch.randn(8, 12), "2:4", mask=bad_masks()[case])


def test_optimizer_state_of_another_kind_is_refused() -> None:
    weight = SparseWeight.from_dense(torch.randn(8, 12), "2:4")
    optimizer = torch.optim.SGD(weight.parameters(), lr=0.1)
    optimizer.state[weight.values] = {"packed": torch.zeros(weight.nnz, dtype=torch.uint8)}
    before = frozen_bytes(weight)
    with pytest.raises(gossamer.DTypeError, match="packed"):
        weight.set_mask(random_mask((8, 12), "2:4", seed=1), optimizer)
    assert frozen_bytes(weight) == before


def bad_builds() -> dict[str, tuple[type[Exception], str, Callable[[], object]]]:
    build = SparseWeight.from_dense
    full = torch.randn(8, 12)
    good = build(full, "2:4")
    layout, indices, _ = good.structure
    unsorted = indices.flip(0)
    return {
        "columns": (gossamer.PatternError, "multiple of 8", lambda: build(full, "2:8")),
        "rows": (gossamer.PatternError, "multiple of 8", lambda: build(full[:4], "2:4:v8")),
        "text": (gossamer.PatternError, "2:4:v4", lambda: build(full, "two of four")),
        "rank": (gossamer.ShapeError, "2 dimensions are needed", lambda: build(full[0], "2:4")),
        "float16": (gossamer.DTypeError, "bfloat16", lambda: build(full.half(), "2:4")),
        "integers": (gossamer.DTypeError, "int64", lambda: build(full.long(), "2:4")),
        "an array": (gossamer.DTypeError, "ndarray", lambda: build(full.numpy(), "2:4")),
        "meta": (gossamer.DeviceError, "meta", lambda: build(full.to("meta"), "2:4")),
        "score shape": (
            gossamer.ShapeError,
            "score",
            lambda: build(full, "2:4", score=torch.ones(8, 8)),
        ),
        "mask list": (gossamer.DTypeError, "mask is a list", lambda: build(full, "2:4", [True])),
        "score list": (
            gossamer.DTypeError,
            "score is a list",
            lambda: build(full, "2:4", score=[1.0]),
        ),
        "both": (ValueError, "drop one", lambda: build(full, "2:4", full != 0, full)),
        "transpose": (ValueError, "packed", lambda: build(full, "2:4", transpose="yes")),
        "other pattern": (
            gossamer.StructureError,
            "not pattern",
            lambda: SparseWeight(good.values, good.structure, "1:2"),
        ),
        "too few": (
            gossamer.StructureError,
            "needs 10",
            lambda: SparseWeight(
                torch.ones(0), backend.encode(torch.zeros(8, 12, dtype=torch.bool), 1), "90%"
            ),
        ),
        "value count": (
            gossamer.StructureError,
            "47 values",
            lambda: SparseWeight(good.values[1:], good.structure, "2:4"),
        ),
        "unsorted": (
            gossamer.StructureError,
            "does not keep 2",
            lambda: SparseWeight(good.values, backend.Structure(layout, unsorted, None), "2:4"),
        ),
    }


@pytest.mark.parametrize("case", bad_builds())
def test_bad_construction_is_one_clear_error(case: str) -> None:
    error, text, build = bad_builds()[case]
    with pytest.raises(error, match=text):
        build()


def test_repr_says_what_it_is() -> None:
    weight = SparseWeight.from_dense(torch.randn(8, 12), "2:4", transpose="none")
    text = "SparseWeight(8x12, pattern=2:4, nnz=48, dtype=torch.float32, transpose=none)"
    assert repr(weight) == text
