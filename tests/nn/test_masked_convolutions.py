"""Convolutions with a dense weight under a mask: `MaskedLinear` with an `ImageProduct`."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer
from gossamer import SparseConv2d
from gossamer.errors import DTypeError, PatternError, ShapeError
from gossamer.nn import MaskedLinear
from gossamer.nn.layers import rebuilding
from gossamer.nn.layers.bimask import BiMaskLinear
from gossamer.nn.layers.convolution import KINDS
from gossamer.nn.layers.filters import matrix_of
from gossamer.nn.layers.sampled import SampledLinear
from gossamer.nn.layers.soft_threshold import SoftThresholdLinear
from gossamer.nn.layers.threshold import ThresholdLinear
from gossamer.patterns import NM

# Dimensions, arguments of the convolution.
WINDOWS: tuple[tuple[int, dict[str, Any]], ...] = (
    (1, {"kernel_size": 3}),
    (2, {"kernel_size": 3, "padding": 1}),
    (2, {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1), "bias": False}),
    (2, {"kernel_size": 4, "padding": "same", "groups": 2}),
    (2, {"kernel_size": 3, "padding": 2, "dilation": 2, "padding_mode": "circular"}),
    (3, {"kernel_size": 2, "stride": 2, "padding": 1, "groups": 2}),
)


def _dense(dims: int, options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return KINDS[dims - 1].dense(8, 8, **options).double()


def _images(dims: int, *leading: int) -> Tensor:
    return torch.randn(*leading, 8, *(7, 6, 5)[:dims], dtype=torch.float64)


def _masked(dense: Any, used: Tensor) -> nn.Module:
    """The oracle: torch's layer with the used filters."""
    oracle = copy.deepcopy(dense)
    filters = used.view(8, *dense.kernel_size, -1).movedim(-1, 1)
    oracle.weight = nn.Parameter(filters.detach().clone())
    return oracle


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("gradient", ["dense", "kept"])
@pytest.mark.parametrize(("dims", "options"), WINDOWS)
def test_products_and_gradients(
    dims: int, options: dict[str, Any], gradient: Any, share: float
) -> None:
    dense = _dense(dims, options)
    layer = MaskedLinear.from_dense(dense, "2:4", share != 0.25, gradient)
    layer.masked_weight_share.fill_(share)
    oracle = _masked(dense, layer.used_weight())
    for last in (False, True):
        x = _images(dims, 3)
        if last and dims > 1:
            x = x.contiguous(memory_format=(torch.channels_last, torch.channels_last_3d)[dims - 2])
        mine, theirs = (x.clone().requires_grad_() for _ in range(2))
        y, wanted = layer(mine), oracle(theirs)
        torch.testing.assert_close(y, wanted)
        g = torch.randn_like(wanted)
        grads = torch.autograd.grad(y, [mine, *layer.parameters()], g)
        expected = list(torch.autograd.grad(wanted, [theirs, *oracle.parameters()], g))
        expected[1] = matrix_of(expected[1])
        if share == 0.0 and gradient == "kept":
            expected[1] = expected[1] * layer.mask()
        for grad, right in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad, right)
        wide = layer.dense_gradient(x, g, 0, 8)
        torch.testing.assert_close(layer.dense_gradient(x, g, 3, 5), wide[3:5])
        if gradient == "dense" or share:
            torch.testing.assert_close(wide, grads[1])
        (alone,) = torch.autograd.grad(layer(mine), [mine], g)  # without the weight's gradient
        torch.testing.assert_close(alone, expected[0])
    torch.testing.assert_close(layer(_images(dims, 1)[0]).shape, oracle(_images(dims, 1)[0]).shape)


def _of_kind(name: str) -> MaskedLinear:
    dense = nn.Conv2d(8, 8, 3, padding=1, stride=2)
    kinds: dict[str, Any] = {
        "masked": lambda: MaskedLinear.from_dense(dense, "2:4"),
        "fixed": lambda: MaskedLinear.from_dense(dense, "70%", False, "kept"),
        "bimask": lambda: BiMaskLinear.from_dense(dense, "2:4"),
        "sampled": lambda: SampledLinear.from_dense(dense, "2:4", False),
        "soft threshold": lambda: SoftThresholdLinear.from_dense(dense, "2:4"),
        "threshold": lambda: ThresholdLinear.from_dense(dense, "50%", None),
    }
    return kinds[name]()  # type: ignore[no-any-return]


NAMES = ("masked", "fixed", "bimask", "sampled", "soft threshold", "threshold")


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_is_a_convolution_of_what_it_uses(name: str) -> None:
    layer = _of_kind(name)
    if isinstance(layer, BiMaskLinear):
        layer.order = torch.randperm(8)
    x = torch.randn(3, 8, 7, 6).requires_grad_()
    y = layer(x)
    wanted = F.conv2d(
        x, layer.used_weight().view(8, 3, 3, 8).movedim(-1, 1), layer.bias, stride=2, padding=1
    )
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5)
    g = torch.randn_like(y)
    (mine,) = torch.autograd.grad(y, x, g, retain_graph=True)
    back = layer.used_weight()
    if isinstance(layer, BiMaskLinear):
        back = back * layer.backward_mask()
    filters = back.view(8, 3, 3, 8).movedim(-1, 1)
    right = torch.nn.grad.conv2d_input(x.shape, filters, g, stride=2, padding=1)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)
    grads = torch.autograd.grad(y, layer.trained(), g)
    of_all = torch.nn.grad.conv2d_weight(x, (8, 8, 3, 3), g, stride=2, padding=1)  # type: ignore[no-untyped-call]
    kept = layer.mask() if name in ("fixed", "threshold") else torch.ones(8, 72, dtype=torch.bool)
    torch.testing.assert_close(grads[0], matrix_of(of_all) * kept, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_saved_copied_and_swapped(name: str, tmp_path: Any) -> None:
    layer = _of_kind(name)
    x = torch.randn(3, 8, 7, 6)
    y = layer(x)
    model = nn.Sequential(layer)
    gossamer.save(model, tmp_path / "model.safetensors")
    loaded = gossamer.load(tmp_path / "model.safetensors", nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1)))
    assert type(loaded[0]) is type(layer)
    assert torch.equal(loaded(x), y)
    with pytest.raises(gossamer.CheckpointError, match="build the model that was saved"):
        gossamer.load(tmp_path / "model.safetensors", nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1)))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), y)  # noqa: S301
    again = copy.deepcopy(layer)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), y)
    sparse, dense = layer.to_sparse(), layer.to_dense()
    assert type(sparse) is SparseConv2d
    assert type(dense) is nn.Conv2d
    torch.testing.assert_close(sparse(x), y)
    torch.testing.assert_close(dense(x), y, rtol=1e-4, atol=1e-5)
    densified = gossamer.densify(model)[0]  # type: ignore[index]
    assert type(densified) is nn.Conv2d
    assert "stride=(2, 2)" in repr(layer)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_is_compiled(name: str) -> None:
    layer = _of_kind(name)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), layer)
    for share in (0.0, 0.25, 1.0):
        if share and name == "threshold":
            continue
        layer.masked_weight_share.fill_(share)
        x = torch.randn(3, 8, 7, 6)
        wanted = model(x)
        grads = torch.autograd.grad(wanted.square().sum(), list(model.parameters()))
        y = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(y, wanted)
        found = torch.autograd.grad(y.square().sum(), list(model.parameters()))
        for mine, right in zip(found, grads, strict=True):
            torch.testing.assert_close(mine, right)


def test_autocast() -> None:
    layer = _of_kind("masked")
    x = torch.randn(2, 8, 7, 6)
    for share in (0.0, 0.25, 1.0):
        layer.masked_weight_share.fill_(share)
        wanted = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), wanted, rtol=0.05, atol=0.05)
        y.float().sum().backward()


def test_what_does_not_fit() -> None:
    layer = _of_kind("masked")
    with pytest.raises(ShapeError, match=r"8 channels, \*size\] with 2 sizes is needed"):
        layer(torch.randn(3, 7, 6, 6))
    with pytest.raises(DTypeError, match="one dtype is needed"):
        layer(torch.randn(3, 8, 6, 6, dtype=torch.float64))
    with pytest.raises(PatternError, match="input channels per group"):
        MaskedLinear.from_dense(nn.Conv2d(3, 8, 3), "2:4")
    with pytest.raises(PatternError, match="groups=2; its backward mask"):
        BiMaskLinear.from_dense(nn.Conv2d(8, 8, 3, groups=2), "2:4")
    with pytest.raises(PatternError, match="sample of tokens is taken in linear layers only"):
        SampledLinear.from_dense(nn.Conv2d(8, 8, 3), "2:4", sample=NM(2, 4))
    before = layer.mask().clone()
    with pytest.raises(PatternError, match=r"multiple of 5"):
        layer.set_pattern("2:5")
    assert torch.equal(layer.mask(), before)


def test_a_mask_of_whole_filters() -> None:
    layer = _of_kind("fixed")
    mask = torch.zeros(8, 72, dtype=torch.bool)
    mask[1::2] = True
    layer.set_mask(mask, gossamer.parse_pattern("50%"))
    x = torch.randn(2, 8, 7, 6)
    y = layer(x)
    assert torch.equal(y[:, ::2], layer.bias[::2].view(1, -1, 1, 1).expand_as(y[:, ::2]))  # type: ignore[index]
    torch.testing.assert_close(layer.to_sparse()(x), y)


@pytest.mark.parametrize(
    ("name", "value"),
    [("dims", 7), ("kernel_size", [5, 5]), ("groups", 3), ("padding_mode", "x"), ("more", 1)],
)
def test_a_damaged_window_is_refused(name: str, value: Any) -> None:
    layer = _of_kind("masked")
    described: Any = rebuilding.describe(layer)
    described["window"][name] = value
    with pytest.raises((ShapeError, gossamer.CheckpointError)):
        rebuilding.build(described, layer.state_dict())
