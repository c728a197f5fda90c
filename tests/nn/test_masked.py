"""MaskedLinear: a dense trained weight that computes under a mask."""

import copy
import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.errors import GossamerError, PatternError, ShapeError, StructureError
from gossamer.masks import magnitude_mask, random_mask
from gossamer.nn import MaskedLinear, SparseLinear
from gossamer.nn.layers.known_numbers import number_in
from gossamer.patterns import Unstructured, parse_pattern
from support.grids import covering
from support.oracle import PATTERNS, WIDE, assert_close, sizes, spmm, spmm_t

MOVING = [*PATTERNS, *WIDE, "1:4", "2:8", "1:16", "1:4:v4"]


def master(
    pattern: str = "2:8", dtype: torch.dtype = torch.float64, bias: bool = True, **kwargs: object
) -> MaskedLinear:
    rows, cols = sizes(pattern)
    return MaskedLinear.from_dense(nn.Linear(cols, rows, bias, dtype=dtype), pattern, **kwargs)


def run(layer: MaskedLinear, lead: tuple[int, ...] = (5,)) -> tuple[Tensor, Tensor, Tensor]:
    """The input, the output and its gradient of one forward and backward pass."""
    dtype = layer.weight.dtype
    x = torch.randn(*lead, layer.in_features, dtype=dtype, requires_grad=True)
    y = layer(x)
    g = torch.randn_like(y)
    y.backward(g)
    return x, y, g


@pytest.mark.parametrize(
    ("pattern", "dtype"), covering(MOVING, [torch.float32, torch.float64, torch.bfloat16])
)
def test_straight_through_against_the_masked_dense_layer(pattern: str, dtype: torch.dtype) -> None:
    layer = master(pattern, dtype)
    x, y, g = run(layer)
    w = layer.weight.detach()
    used = w * magnitude_mask(w, parse_pattern(pattern))
    assert torch.equal(layer.mask(), used != 0)
    a, b = x.detach().abs(), layer.bias.detach()
    assert_close(y.detach(), spmm(x.detach(), used, b), spmm(a, used.abs(), b.abs()))
    assert_close(x.grad, spmm_t(g, used), spmm_t(g.abs(), used.abs()))
    dense = g.double().T @ x.detach().double()
    assert_close(layer.weight.grad, dense, g.double().abs().T @ a.double())
    assert layer.weight.grad[used == 0].any()
    assert_close(layer.bias.grad, g.double().sum(0), g.double().abs().sum(0))


@pytest.mark.parametrize("pattern", MOVING)
def test_kept_gradient_is_the_dense_one_at_kept_entries(pattern: str) -> None:
    layer = master(pattern, gradient="kept")
    x, _, g = run(layer, (2, 3))
    dense = g.flatten(0, 1).T @ x.detach().flatten(0, 1)
    torch.testing.assert_close(layer.weight.grad, dense * layer.mask())


def test_the_mask_follows_the_weight_only_when_it_moves() -> None:
    for moving in (True, False):
        layer = master("1:4", reselect_each_forward=moving)
        before = layer.mask()
        with torch.no_grad():
            layer.weight.copy_(layer.weight.flip(1))
        layer(torch.randn(2, layer.in_features, dtype=torch.float64))
        assert torch.equal(layer.mask(), before.flip(1) if moving else before)


def test_a_masked_weight_below_the_threshold_does_not_change_y() -> None:
    layer = master("2:8")
    x = torch.randn(3, layer.in_features, dtype=torch.float64)
    y = layer(x)
    with torch.no_grad():
        layer.weight.mul_(torch.where(layer.mask(), 1.0, 0.5))
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("pattern", ["1:4", "2:8:v4", "90%", "block 4x4 50%"])
def test_share_fades_the_masked_entries(pattern: str) -> None:
    rows, cols = 16, 40
    layer = MaskedLinear.from_dense(nn.Linear(cols, rows, dtype=torch.float64), pattern)
    w = layer.weight.detach()
    mask = magnitude_mask(w, layer.pattern)
    for share in (0.0, 0.5, 1.0):
        layer.masked_weight_share.fill_(share)
        layer.zero_grad()
        x, y, g = run(layer)
        used = torch.where(mask, w, w * share)
        assert torch.equal(layer.used_weight(), used)
        torch.testing.assert_close(y, nn.functional.linear(x, used, layer.bias))
        torch.testing.assert_close(x.grad, g @ used)
        torch.testing.assert_close(layer.weight.grad, g.T @ x)
    dense = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(y, dense)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_autocast(share: float) -> None:
    layer = master("2:4:v4", torch.float32)
    layer.masked_weight_share.fill_(share)
    x = torch.randn(6, layer.in_features, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.backward(torch.ones_like(y))
    assert layer.weight.grad.dtype == x.grad.dtype == layer.bias.grad.dtype == torch.float32
    used = layer.used_weight()
    torch.testing.assert_close(y.float(), x @ used.T + layer.bias, rtol=0.05, atol=0.05)
    torch.testing.assert_close(x.grad, used.sum(0).expand_as(x), rtol=0.05, atol=0.05)
    expected = x.detach().sum(0).expand_as(used)
    torch.testing.assert_close(layer.weight.grad, expected, rtol=0.05, atol=0.05)


def test_no_gradient_is_computed_that_nobody_asks_for() -> None:
    layer = master("2:4")
    layer.weight.requires_grad_(False)
    x = torch.randn(3, layer.in_features, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None
    layer.weight.requires_grad_(True)
    layer(x.detach()).sum().backward()  # a gradient of stride 0
    rows = x.detach().sum(0).expand(layer.out_features, -1)
    torch.testing.assert_close(layer.weight.grad, rows)


def test_set_mask_and_set_pattern() -> None:
    layer = master("2:8", reselect_each_forward=False)
    mask = random_mask(tuple(layer.weight.shape), layer.pattern, seed=3)
    layer.set_mask(mask)
    assert torch.equal(layer.mask(), mask)
    x, y, _ = run(layer)
    used = layer.weight * mask
    torch.testing.assert_close(y, nn.functional.linear(x, used, layer.bias))
    layer.set_pattern("1:4:v4")
    assert str(layer.pattern) == "1:4:v4"
    assert layer.density == 0.25
    assert torch.equal(layer.mask(), magnitude_mask(layer.weight.detach(), layer.pattern))
    other = random_mask(tuple(layer.weight.shape), Unstructured(0.5), seed=1)
    layer.set_mask(other, Unstructured(0.5))
    assert torch.equal(layer.mask(), other)
    assert layer.nnz == other.sum()
    for bad, error in ((other[:, 1:], ShapeError), (~other | other, StructureError)):
        with pytest.raises(error):
            layer.set_mask(bad)
    with pytest.raises(PatternError, match="in_features"):
        layer.set_pattern("3:7")
    assert torch.equal(layer.mask(), other)
    assert layer.pattern == Unstructured(0.5)


@pytest.mark.parametrize("change", ["mask", "weight", "pattern"])
@pytest.mark.parametrize("moving", [False, True])
def test_a_mask_that_moves_before_backward_leaves_its_gradients_right(
    change: str, moving: bool
) -> None:
    layer = master("2:8", reselect_each_forward=moving, gradient="kept")
    used, mask = layer.used_weight().clone(), layer.mask()
    x = torch.randn(4, layer.in_features, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    if change == "mask":
        layer.set_mask(mask.flip(1))
    elif change == "pattern":
        layer.set_pattern("1:4")
    else:
        with torch.no_grad():
            layer.weight.neg_().copy_(layer.weight.flip(1))
        layer(x.detach())
    g = torch.randn_like(y)
    y.backward(g)
    torch.testing.assert_close(x.grad, g @ used)
    torch.testing.assert_close(layer.weight.grad, (g.T @ x) * mask)


def test_indices_that_somebody_writes_into_before_backward_are_refused() -> None:
    layer = master("2:8", reselect_each_forward=False, gradient="kept")
    y = layer(torch.randn(4, layer.in_features, dtype=torch.float64))
    layer.indices.copy_(layer.indices.flip(0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_one_layer_used_twice_in_one_pass() -> None:
    layer = MaskedLinear.from_dense(nn.Linear(16, 16, dtype=torch.float64), "1:4")
    w = layer.weight.detach().clone().requires_grad_()
    x = torch.randn(3, 16, dtype=torch.float64)
    (layer(layer(x).tanh()) ** 2).sum().backward()
    used = (w * layer.mask()).detach().requires_grad_()  # straight through: its gradient is w's
    bias = layer.bias.detach()
    once = nn.functional.linear(x, used, bias).tanh()
    (nn.functional.linear(once, used, bias) ** 2).sum().backward()
    torch.testing.assert_close(layer.weight.grad, used.grad)


@pytest.mark.parametrize("pattern", ["2:4", "1:4:v4", "90%", "block 4x4 50%"])
def test_state_goes_into_a_layer_of_another_pattern(pattern: str) -> None:
    source = MaskedLinear.from_dense(nn.Linear(32, 16), pattern, reselect_each_forward=False)
    source.set_mask(random_mask((16, 32), source.pattern, seed=1))
    source.masked_weight_share.fill_(0.25)
    target = MaskedLinear.from_dense(nn.Linear(32, 16), "2:8", reselect_each_forward=False)
    state = io.BytesIO()
    torch.save(source.state_dict(), state)
    state.seek(0)
    target.load_state_dict(torch.load(state, weights_only=True))
    assert target.pattern == source.pattern
    assert torch.equal(target.mask(), source.mask())
    assert target.masked_weight_share.item() == 0.25
    source.masked_weight_share.fill_(0.0), target.masked_weight_share.fill_(0.0)
    x = torch.randn(3, 32, requires_grad=True)
    assert torch.equal(target(x), source(x))
    (grad,) = torch.autograd.grad(target(x).sum(), x)
    torch.testing.assert_close(grad, source.used_weight().sum(0).expand(3, -1))
    # What was loaded is its own.
    source.indices.zero_()
    assert torch.equal(target(x).detach(), target(x.detach()))


@pytest.mark.parametrize(
    "damage",
    [
        "index",
        "order",
        "short",
        "missing",
        "descriptor",
        "size",
        "masked_weight_share",
        "nan",
        "weight",
    ],
)
def test_a_damaged_state_changes_nothing(damage: str) -> None:
    layer = MaskedLinear.from_dense(nn.Linear(32, 16), "2:8", reselect_each_forward=False)
    other = MaskedLinear.from_dense(nn.Linear(32, 16), "1:4", reselect_each_forward=False)
    other.masked_weight_share.fill_(0.5)
    state = dict(other.state_dict())
    if damage == "index":
        state["indices"] = state["indices"] + 200
    elif damage == "order":
        state["indices"] = state["indices"].flip(0)
    elif damage == "short":
        state["indices"] = state["indices"][:-3]
    elif damage == "missing":
        del state["indices"]
    elif damage == "descriptor":
        state["descriptor"] = state["descriptor"][:5]
    elif damage == "size":
        state = dict(MaskedLinear.from_dense(nn.Linear(16, 32), "1:4").state_dict())
    elif damage == "masked_weight_share":
        state["masked_weight_share"] = torch.tensor(1.5)
    elif damage == "nan":
        state["masked_weight_share"] = torch.tensor(float("nan"))
    else:
        state["weight"] = state["weight"][:8]
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(StructureError):
        layer.load_state_dict(state)
    after = layer.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert str(layer.pattern) == "2:8"
    assert layer.structure.layout.m == 8


def test_copies_are_their_own() -> None:
    layer = master("2:4:v4", reselect_each_forward=False)
    with torch.no_grad():
        buffer = io.BytesIO()
        torch.save(layer, buffer)
        buffer.seek(0)
    for copied in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        x = torch.randn(3, layer.in_features, dtype=torch.float64)
        y = layer(x)
        assert torch.equal(copied(x), y)
        copied.set_mask(copied.mask().roll(4, 0))
        with torch.no_grad():
            copied.weight.zero_()
        assert torch.equal(layer(x), y)
        assert not torch.equal(layer.mask(), copied.mask())


def test_to_sparse_computes_the_same() -> None:
    for pattern in ("2:8", "90%", "block 4x4 50%"):
        layer = master(pattern).eval()
        sparse = layer.to_sparse()
        x = torch.randn(3, layer.in_features, dtype=torch.float64)
        assert isinstance(sparse, SparseLinear)
        assert not sparse.training
        assert torch.equal(sparse(x), layer(x))
        with torch.no_grad():
            sparse.weight.values.zero_(), sparse.bias.zero_()
        assert layer.bias.any()
        assert layer.weight.any()


def test_a_wide_batch_and_empty_ones() -> None:
    layer = master("1:4")
    for lead in ((0,), (2, 0, 3), (1,), (2, 2, 2)):
        x, y, g = run(layer, lead)
        assert y.shape == (*lead, layer.out_features)
        assert x.grad.shape == x.shape
        torch.testing.assert_close(x.grad, g @ layer.used_weight())
    assert layer(torch.randn(layer.in_features, dtype=torch.float64)).shape == (layer.out_features,)


def test_bad_input_is_named() -> None:
    layer = master("2:8")
    with pytest.raises(ShapeError, match="in_features"):
        layer(torch.randn(3, layer.in_features + 1, dtype=torch.float64))
    with pytest.raises(PatternError, match="in_features"):
        MaskedLinear.from_dense(nn.Linear(10, 4), "2:8")
    with pytest.raises(GossamerError):
        MaskedLinear.from_dense(nn.Linear(8, 4, dtype=torch.float16), "2:8")


def test_a_nan_in_the_weight_is_seen() -> None:
    layer = master("2:8")
    with torch.no_grad():
        layer.weight[3, 5] = float("nan")
    y = layer(torch.ones(1, layer.in_features, dtype=torch.float64))
    assert y.isnan().sum() == 1
    assert bool(y[0, 3].isnan())


def test_threads_do_not_change_a_bit() -> None:
    layer = MaskedLinear.from_dense(nn.Linear(512, 512), "2:4:v4")
    x, g = torch.randn(64, 512, requires_grad=True), torch.randn(64, 512)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        y = layer(x)
        (grad,) = torch.autograd.grad(y, x, g)
        results.append((y.detach(), grad, layer.indices.clone()))
    assert all(map(torch.equal, *results))


def test_the_structure_is_the_one_that_encode_builds() -> None:
    for pattern in ("2:4", "1:4:v4", "2:8", "3:5"):
        layer = master(pattern)
        values, structure = layer.pack()
        by_hand = backend.encode(
            magnitude_mask(layer.weight.detach(), layer.pattern),
            layer.pattern.panel, layer.pattern.n, layer.pattern.m,
        )  # fmt: skip
        assert structure.layout == by_hand.layout
        assert torch.equal(structure.indices, by_hand.indices)
        assert torch.equal(values, backend.gather(layer.weight.detach(), by_hand))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("parts", [["indices"], ["indptr"], ["indices", "indptr"], ["descriptor"]])
def test_a_part_of_a_mask_is_refused(parts: list[str], strict: bool) -> None:
    other = MaskedLinear.from_dense(nn.Linear(16, 32), "50%").state_dict()
    layer = MaskedLinear.from_dense(nn.Linear(16, 32), "50%", reselect_each_forward=False)
    before = copy.deepcopy(layer.state_dict())
    dropped = {"indices", "indptr", "descriptor"} - set(parts)
    state = {name: tensor for name, tensor in other.items() if name not in dropped}
    with pytest.raises(StructureError):
        layer.load_state_dict(state, strict=strict)
    after = layer.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    layer(torch.randn(2, 16))


def test_a_number_on_a_device_is_read_again_when_it_has_changed() -> None:
    class Buffer:
        is_meta = is_cpu = False
        _version, reads, number = 0, 0, 1.0

        def is_inference(self) -> bool:
            return False

        def item(self) -> float:
            self.reads += 1
            return self.number

    owner: Any = SimpleNamespace(share=Buffer())
    assert [number_in(owner, "share") for _ in range(3)] == [1.0] * 3
    owner.share.number, owner.share._version = 0.5, 1
    assert [number_in(owner, "share") for _ in range(3)] == [0.5] * 3
    assert owner.share.reads == 2
    first, owner.share = owner.share, Buffer()  # as .to() does
    owner.share._version = 1
    assert number_in(owner, "share") == 1.0
    assert (first.reads, owner.share.reads) == (2, 1)
