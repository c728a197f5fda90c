"""The sparse convolutions as layers: every option of torch's, derivatives, operators, errors."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import SparseConv1d, SparseConv2d, SparseConv3d
from gossamer.errors import DTypeError, PatternError, ShapeError
from gossamer.nn.layers.convolution import KINDS, SparseConv
from gossamer.nn.layers.filters import filters_of, matrix_of

KIND = {1: SparseConv1d, 2: SparseConv2d, 3: SparseConv3d}
SIZE = {1: (11,), 2: (9, 7), 3: (5, 6, 4)}
PATTERNS = ("60%", "60%:v4", "2:4", "2:4:v4", "1:4:v8", "block 4x4 50%", "block 1x8 50%")
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"padding": 1},
    {"padding": "same"},
    {"padding": "same", "kernel_size": 2, "dilation": 3},
    {"padding": "valid", "stride": 2},
    {"stride": 2, "padding": 1, "dilation": 2},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"groups": 2, "padding": 1},
    {"groups": 2, "stride": 3, "padding": 2},
    {"padding_mode": "reflect", "padding": 1},
    {"padding_mode": "replicate", "padding": 2, "stride": 2},
    {"padding_mode": "circular", "padding": "same", "kernel_size": 2},
    {"bias": False, "padding": 1},
)


def _layer(dims: int, pattern: str, dtype: torch.dtype, **options: Any) -> SparseConv:
    options = {"kernel_size": 3, **options}
    return KIND[dims](16, 16, **options, dtype=dtype, pattern=pattern)


def _gradients(layer: nn.Module, x: Tensor, wanted: list[Tensor]) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    g = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [x, *wanted], g)]


# torch's own, of padding="same" with an even kernel.
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dims", KIND)
def test_equals_the_dense_convolution(dims: int, options: dict[str, Any]) -> None:
    for pattern, batch in itertools.product(PATTERNS, ((2,), ())):
        layer = _layer(dims, pattern, torch.float64, **options)
        dense = layer.to_dense()
        assert type(dense) is layer.dense
        x = torch.randn(*batch, 16, *SIZE[dims], dtype=torch.float64)
        biases = [] if layer.bias is None else [layer.bias]
        dense_biases = [] if dense.bias is None else [dense.bias]
        got = _gradients(layer, x, [*biases, layer.weight.values])
        expected = _gradients(dense, x, [*dense_biases, dense.weight])
        at_kept = gossamer.backend.gather(
            matrix_of(expected.pop()).contiguous(), layer.weight.structure
        )
        for mine, theirs in zip(got, [*expected, at_kept], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    for options in OPTIONS:
        layer = _layer(2, "2:4:v4", dtype, **options)
        x = torch.randn(2, 16, 9, 7, dtype=dtype)
        y, gx, gv = _gradients(layer, x, [layer.weight.values])
        assert y.dtype == gx.dtype == gv.dtype == dtype
        dense = layer.to_dense().double()
        y64, gx64, _ = _gradients(dense, x.double(), [dense.weight])
        tolerance = {"rtol": 2e-2, "atol": 5e-2} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(y.double(), y64, check_dtype=False, **_loose(tolerance))
        torch.testing.assert_close(gx.double(), gx64, check_dtype=False, **_loose(tolerance))


def _loose(tolerance: dict[str, float]) -> dict[str, float]:
    return tolerance or {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_derivatives(options: dict[str, Any]) -> None:
    for dims, pattern in ((2, "60%"), (1, "2:4:v4"), (3, "1:4")):
        options = {**options, "kernel_size": options.get("kernel_size", 2)}
        channels = 4 * options.get("groups", 1)
        layer = KIND[dims](channels, channels, **options, dtype=torch.float64, pattern=pattern)
        x = torch.randn(2, channels, *(5, 4, 3)[:dims], dtype=torch.float64, requires_grad=True)

        def of(x: Tensor, values: Tensor) -> Tensor:
            return torch.func.functional_call(layer, {"weight.values": values}, (x,))  # noqa: B023

        inputs = (x, layer.weight.values)
        assert torch.autograd.gradcheck(of, inputs)
        assert torch.autograd.gradgradcheck(of, inputs)


def test_memory_formats() -> None:
    layer = _layer(2, "75%:v4", torch.float32, padding=1)
    x = torch.randn(2, 16, 9, 7)
    last = x.contiguous(memory_format=torch.channels_last)
    assert layer(last).is_contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous()
    torch.testing.assert_close(layer(last), layer(x))
    torch.testing.assert_close(layer(x.expand(2, 16, 9, 7)), layer(x))
    images = torch.randn(1, 16, 9, 7).expand(3, -1, -1, -1).requires_grad_()
    (g,) = torch.autograd.grad(layer(images).sum(), images)  # a gradient of stride 0
    torch.testing.assert_close(g[0], g[2])


@pytest.mark.parametrize("kind", KINDS)
def test_is_the_layer_of_a_dense_one(kind: type[SparseConv]) -> None:
    dense: Any = kind.dense(8, 16, 3, 2, 1, bias=True, padding_mode="circular").eval()
    for pattern in PATTERNS:
        layer = kind.from_dense(dense, pattern)
        assert not layer.training
        kept = layer.filters() != 0
        assert torch.equal(layer.filters()[kept], dense.weight[kept])
        again = layer.to_dense()
        assert torch.equal(again.weight, layer.filters())
        assert again.extra_repr() == dense.extra_repr()
    mask = torch.zeros(dense.weight.shape, dtype=torch.bool)
    mask[:, 3, 1] = True
    layer = kind.from_dense(dense, f"{100 * (1 - mask.double().mean().item())}%", mask)
    assert torch.equal(layer.filters() != 0, mask)
    score = torch.rand(dense.weight.shape)
    by_shape = kind.from_dense(dense, "2:4", score=score).structure
    by_matrix = kind.from_dense(dense, "2:4", score=matrix_of(score)).structure
    assert torch.equal(by_shape.indices, by_matrix.indices)
    with pytest.raises(DTypeError, match=f"takes nn.{kind.dense.__name__}"):
        kind.from_dense(nn.Linear(8, 8), "2:4")


def test_groups_of_columns_run_along_channels() -> None:
    filters = SparseConv2d(8, 4, 3, pattern="1:4").filters()
    per_group = (filters != 0).view(4, 2, 4, 3, 3).sum(2)
    assert (per_group == 1).all()
    w = torch.randn(4, 6, 2, 3)
    assert torch.equal(filters_of(matrix_of(w), (2, 3)), w)
    assert torch.equal(matrix_of(w)[:, :6], w[:, :, 0, 0])


def test_whole_filters_are_a_block_pattern() -> None:
    layer = SparseConv2d(8, 16, 3, pattern="block 1x72 50%")
    alive = layer.filters().flatten(1).ne(0).any(1)
    assert int(alive.sum()) == 8
    assert layer.density == 0.5


def test_flops_are_those_of_kept_entries() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    layer = _layer(2, "75%", torch.float32, groups=2, padding=1)
    x = torch.randn(2, 16, 5, 5, requires_grad=True)
    with FlopCounterMode(display=False) as count:
        layer(x).sum().backward()
    assert count.get_total_flops() == 3 * 2 * 2 * 25 * layer.nnz


@pytest.mark.parametrize("pattern", ["60%", "2:4:v4"])
def test_the_operators_obey_torchs_rules(pattern: str) -> None:
    from gossamer.ops.library import parts_of

    for options in ({"padding": 1}, {"groups": 2, "stride": 2}):
        layer = _layer(2, pattern, torch.float64, **options)
        x = torch.randn(2, 16, 6, 5, dtype=torch.float64, requires_grad=True)
        g = torch.randn_like(layer(x)).requires_grad_()
        values, parts = layer.weight.values, parts_of(layer.weight)
        ints, ops = layer.window.as_ints(), torch.ops.gossamer
        for op, args in (
            (ops.convolve, (x, values, *parts, ints, layer.bias)),
            (ops.convolve_input, (g, values, *parts, ints, (6, 5))),
            (ops.convolve_weight, (g, x, *parts, ints)),
        ):
            torch.library.opcheck(op.default, args)


def test_autocast_and_vmap() -> None:
    layer = _layer(2, "60%", torch.float32, padding=1)
    x = torch.randn(3, 2, 16, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x[0])
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x[0]), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(torch.vmap(layer)(x)[1], layer(x[1]))


def test_the_dense_gradient_is_that_of_torch() -> None:
    for options in (
        {"padding": 1},
        {"groups": 2, "stride": 2},
        {"padding_mode": "circular", "padding": 1},
    ):
        layer = _layer(2, "60%", torch.float64, **options)
        dense = layer.to_dense()
        x = torch.randn(2, 16, 6, 5, dtype=torch.float64)
        y = dense(x)
        g = torch.randn_like(y)
        (expected,) = torch.autograd.grad(y, dense.weight, g)
        got = torch.cat([layer.dense_gradient(x, g, i, i + 4) for i in range(0, 16, 4)])
        torch.testing.assert_close(got, matrix_of(expected))


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(PatternError, match=r"3 input channels.*multiple of 4"):
        SparseConv2d(3, 8, 3, pattern="2:4")
    with pytest.raises(PatternError, match=r"6 output channels per group.*multiple of 4"):
        SparseConv2d(8, 12, 3, groups=2, pattern="50%:v4")
    with pytest.raises(ShapeError, match="multiple of the groups"):
        SparseConv2d(6, 8, 3, groups=4, pattern="50%")
    with pytest.raises(ShapeError, match="stride 1"):
        SparseConv2d(8, 8, 3, stride=2, padding="same", pattern="50%")
    with pytest.raises(ShapeError, match="'same', 'valid'"):
        SparseConv2d(8, 8, 3, padding="full", pattern="50%")
    with pytest.raises(ShapeError, match="padding_mode"):
        SparseConv2d(8, 8, 3, padding_mode="mirror", pattern="50%")
    with pytest.raises(ShapeError, match="one number or 2"):
        SparseConv2d(8, 8, (3, 3, 3), pattern="50%")
    layer = SparseConv2d(8, 8, 3, pattern="50%")
    with pytest.raises(ShapeError, match="8 channels"):
        layer(torch.randn(2, 4, 6, 6))
    with pytest.raises(ShapeError, match="SparseConv2d got"):
        layer(torch.randn(6, 6))
    with pytest.raises(ShapeError, match="smaller than a window"):
        layer(torch.randn(2, 8, 2, 6))
    with pytest.raises(DTypeError, match="float64"):
        layer(torch.randn(2, 8, 6, 6, dtype=torch.float64))
