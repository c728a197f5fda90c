"""SparseLinear keeps the contract of nn.Linear."""

import math

import pytest
import torch
from torch import nn

import gossamer
from gossamer import SparseLinear
from support import oracle
from support.grids import covering
from support.layers import Conv1D


@pytest.mark.parametrize(
    ("pattern", "bias", "lead"),
    covering(
        [*oracle.PATTERNS, *oracle.WIDE],
        [True, False],
        [(), (1,), (7,), (2, 3), (2, 1, 3), (0,), (4, 0, 2)],
    ),
)
def test_same_function_as_its_dense_twin(pattern: str, bias: bool, lead: tuple[int, ...]) -> None:
    rows, cols = oracle.sizes(pattern)
    layer = SparseLinear(cols, rows, bias, pattern=pattern, dtype=torch.float64)
    twin = layer.to_dense()
    x = torch.randn(*lead, cols, dtype=torch.float64, requires_grad=True)
    y, expected = layer(x), twin(x)
    torch.testing.assert_close(y, expected)
    g = torch.randn_like(y)
    got = torch.autograd.grad(y, [x, layer.weight.values], g)
    want = torch.autograd.grad(expected, [x, twin.weight], g)
    torch.testing.assert_close(got[0], want[0])
    mask = layer.weight.mask()
    grad = gossamer.backend.scatter(got[1], layer.weight.structure)
    torch.testing.assert_close(grad, want[1] * mask)


@pytest.mark.parametrize("bias", [True, False])
def test_from_dense_and_back(bias: bool) -> None:
    dense = nn.Linear(12, 8, bias).eval()
    if bias:
        dense.bias.requires_grad_(False)
    layer = SparseLinear.from_dense(dense, "2:4")
    back = layer.to_dense()
    assert torch.equal(back.weight, dense.weight * layer.weight.mask())
    assert not layer.training
    assert not back.training
    assert (back.bias is None) == (layer.bias is None) == (not bias)
    if bias:
        assert torch.equal(back.bias, dense.bias)
        assert back.bias is not layer.bias is not dense.bias
        assert not layer.bias.requires_grad
        assert not back.bias.requires_grad
    assert layer.weight.values.requires_grad
    frozen = SparseLinear.from_dense(nn.Linear(12, 8).requires_grad_(False), "2:4")
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not any(p.requires_grad for p in frozen.to_dense().parameters())


def test_from_dense_with_mask_and_score() -> None:
    dense = nn.Linear(12, 8)
    mask = gossamer.masks.random_mask((8, 12), "2:4", seed=1)
    assert torch.equal(SparseLinear.from_dense(dense, "2:4", mask=mask).weight.mask(), mask)
    layer = SparseLinear.from_dense(dense, "2:4", score=mask.float())
    assert torch.equal(layer.weight.mask(), mask)


def test_from_conv1d() -> None:
    dense = Conv1D(8, 12)
    layer = SparseLinear.from_dense(dense, "50%:v4")
    assert (layer.in_features, layer.out_features) == (12, 8)
    assert torch.equal(layer.weight.to_dense(), dense.weight.T * layer.weight.mask())
    with torch.no_grad():
        dense.weight.mul_(layer.weight.mask().T)
    x = torch.randn(2, 3, 12)
    torch.testing.assert_close(layer(x), dense(x))
    with pytest.raises(gossamer.DTypeError, match="Embedding"):
        SparseLinear.from_dense(nn.Embedding(8, 12), "2:4")


@pytest.mark.parametrize("pattern", ["1:8:v4", "2:4", "90%", "block 16x16 50%"])
def test_initial_output_has_the_variance_of_nn_linear(pattern: str) -> None:
    dense = nn.Linear(1024, 512, bias=False)
    layer = SparseLinear(1024, 512, bias=False, pattern=pattern)
    x = torch.randn(256, 1024)
    got, expected = layer(x).var().item(), dense(x).var().item()
    assert got == pytest.approx(expected, rel=0.1)
    bound = 1 / math.sqrt(1024 * layer.weight.density)
    assert 0.99 * bound < layer.weight.values.abs().max().item() <= bound


def test_same_seed_same_layer() -> None:
    layers = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        layers.append(SparseLinear(64, 32, pattern="90%"))
    a, b, c = layers
    assert torch.equal(a.weight.to_dense(), b.weight.to_dense())
    assert torch.equal(a.bias, b.bias)
    assert not torch.equal(a.weight.mask(), c.weight.mask())


def test_reset_parameters_keeps_the_mask() -> None:
    layer = SparseLinear(64, 32, pattern="90%")
    mask, values = layer.weight.mask(), layer.weight.values.detach().clone()
    layer.reset_parameters()
    assert torch.equal(layer.weight.mask(), mask)
    assert not torch.equal(layer.weight.values, values)


def test_device_and_dtype_arguments() -> None:
    assert SparseLinear(8, 4, pattern="2:4", dtype=torch.bfloat16).bias.dtype == torch.bfloat16
    torch.set_default_dtype(torch.float64)
    assert SparseLinear(8, 4, pattern="2:4").weight.values.dtype == torch.float64
    torch.set_default_dtype(torch.float32)
    layer = SparseLinear(8, 4, pattern="50%", device="meta")
    with torch.device("meta"):
        other = SparseLinear(8, 4, pattern="50%")
    for meta in (layer, other):
        assert all(t.is_meta for t in [*meta.parameters(), *meta.buffers()])
    for dtype in (torch.float16, torch.int32):
        with pytest.raises(gossamer.DTypeError, match="bfloat16"):
            SparseLinear(8, 4, pattern="2:4", dtype=dtype)


def test_a_meta_layer_comes_alive_with_a_state_dict() -> None:
    real = SparseLinear(12, 7, pattern="50%")
    layer = SparseLinear(12, 7, pattern="50%", device="meta")
    layer.load_state_dict(real.state_dict(), assign=True)
    x = torch.randn(3, 12, requires_grad=True)
    assert torch.equal(layer(x), real(x))
    layer(x).sum().backward()
    empty = SparseLinear(12, 7, pattern="50%", device="meta").to_empty(device="cpu")
    empty.load_state_dict(real.state_dict())
    assert torch.equal(empty(x), real(x))
    got, expected = (torch.autograd.grad(m(x).sum(), x) for m in (empty, real))
    assert torch.equal(got[0], expected[0])


def test_size_errors_name_what_to_do() -> None:
    with pytest.raises(gossamer.PatternError, match="in_features=100 with pattern 2:8") as error:
        SparseLinear(100, 8, pattern="2:8")
    for advice in ("choose", "pad to 104", "exclude"):
        assert advice in str(error.value)
    with pytest.raises(gossamer.PatternError, match="out_features"):
        SparseLinear(8, 6, pattern="2:4:v4")
    with pytest.raises(gossamer.GossamerError):
        SparseLinear(-8, 6, pattern="2:4")
    with pytest.raises(gossamer.DTypeError):
        SparseLinear(8.0, 6, pattern="2:4")


def test_repr() -> None:
    text = repr(SparseLinear(8, 4, pattern="2:4:v4"))
    assert "in_features=8, out_features=4, bias=True" in text
    assert "pattern=2:4:v4" in text


def test_an_input_gradient_alone_does_not_keep_the_input() -> None:
    layer = SparseLinear(8, 4, pattern="2:4").requires_grad_(False)
    x = torch.randn(3, 8, requires_grad=True)
    y = layer(x)
    assert y.grad_fn.saved_tensors[0] is None
    y.sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.to_dense().sum(0).expand(3, -1))
