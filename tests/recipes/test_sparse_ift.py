"""SparseIFT: larger sparse layers at the cost of the dense ones."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gossamer.errors import PatternError, RecipeError
from gossamer.masks import check_mask
from gossamer.nn import SparseLinear
from gossamer.nn.layers.iso_flop import Branches, Doped, Factors, gain
from gossamer.patterns import parse_pattern
from gossamer.recipes.sparse_ift import (
    SparseIFT,
    fitting,
    macs,
    pairs,
)
from gossamer.train.model import GPT, GPTConfig

KINDS: list[Any] = ["parallel", "factorized", "doped", "wide"]
PATTERNS = ["50%", "75%", "90%", "2:4", "1:4", "1:8", "75%:v4", "2:4:g2", "block 8x8 75%"]


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128, bias=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_cost_and_sizes_stay(kind: Any, pattern: str) -> None:
    model = mlp()
    before, parameters = macs(model), sum(p.numel() for p in model.parameters())
    recipe = SparseIFT(pattern, method=kind)
    model = recipe.prepare(model)
    assert abs(macs(model) / before - 1.0) < 0.01
    assert model(torch.randn(2, 3, 128)).shape == (2, 3, 128)
    assert abs(sum(p.numel() for p in model.parameters()) / parameters - 1.0) < 0.04  # a wide bias
    sparse = [m for m in model.modules() if isinstance(m, SparseLinear)]
    for layer in sparse:
        check_mask(layer.weight.mask(), recipe.pattern)
    entries = sum(layer.in_features * layer.out_features for layer in sparse)
    if kind in ("parallel", "wide"):
        assert entries == pytest.approx(before / recipe.pattern.density, rel=0.01)


@pytest.mark.parametrize("pattern", ["50%:v4", "50%:v32", "3:6:v16", "2:4", "block 64x24 50%"])
def test_a_fitting_size_fits_as_rows_and_as_columns(pattern: str) -> None:
    for size in (1, 100, 333.3):
        found = fitting(size, parse_pattern(pattern))
        parse_pattern(pattern).check_shape(found, found)
        assert abs(found - size) <= 96 or found == 192


def test_shapes_of_each_kind() -> None:
    s = 0.75
    branches = SparseIFT("75%", "parallel").prepare(mlp())[0]
    assert isinstance(branches, Branches)
    assert len(branches.branches) == 4
    assert len({tuple(b.weight.mask().flatten().tolist()) for b in branches.branches}) == 4
    factors = SparseIFT("75%", "factorized").prepare(mlp())[0]
    assert isinstance(factors, Factors)
    rank = round(128 * 512 / ((1 - s) * (128 + 512)))
    assert (factors.down.out_features, factors.up.in_features) == (rank, rank)
    doped = SparseIFT("75%", "doped").prepare(mlp())[0]
    assert isinstance(doped, Doped)
    assert doped.down.out_features == round(s * 128 * 512 / (128 + 512))
    wide = SparseIFT("75%", "wide").prepare(mlp())
    assert (wide[0].out_features, wide[2].in_features) == (2048, 2048)
    assert (wide[0].in_features, wide[2].out_features) == (128, 128)
    assert (wide[0].bias.shape, wide[2].bias) == ((2048,), None)
    many = SparseIFT("99%", "parallel").prepare(nn.Sequential(nn.Linear(100, 100)))
    assert len(many[0].branches) == 100


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", ["75%", "1:4"])
def test_outputs_start_with_the_variance_of_the_dense_ones(kind: Any, pattern: str) -> None:
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Linear(256, 512, bias=False), nn.Linear(512, 256, bias=False))
    with torch.no_grad():
        layers[0].weight.mul_(3.0)
    x = torch.randn(256, 256)
    want = layers(x).std().detach()
    assert gain(layers[0].weight) == pytest.approx(3**0.5, rel=0.02)
    got = SparseIFT(pattern, method=kind).prepare(layers)(x).std().detach()
    assert float(got / want) == pytest.approx(1.0, rel=0.06)


@pytest.mark.parametrize("nonlinearity", ["none", "relu", "gelu"])
def test_what_each_kind_computes(nonlinearity: Any) -> None:
    act = {"none": lambda v: v, "relu": F.relu, "gelu": F.gelu}[nonlinearity]
    x = torch.randn(4, 128)
    for kind in KINDS[:2]:
        model = SparseIFT("75%", kind, nonlinearity).prepare(mlp())
        layer = model[0]
        if kind == "parallel":
            want = sum(act(x @ b.weight.to_dense().t()) for b in layer.branches) + layer.bias
        else:
            hidden = act(x @ layer.down.weight.to_dense().t())
            want = hidden @ layer.up.weight.to_dense().t() + layer.up.bias
        torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-5)
    doped = SparseIFT("75%", "doped").prepare(mlp())[0]
    dense = doped.sparse.weight.to_dense() + doped.up.weight @ doped.down.weight
    torch.testing.assert_close(doped(x), x @ dense.t() + doped.sparse.bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_training_moves_everything_and_no_mask(kind: Any) -> None:
    recipe = SparseIFT("75%", method=kind)
    model = recipe.prepare(mlp())
    optimizer = torch.optim.AdamW(recipe.parameters(model), lr=1e-2)
    recipe.attach(model, optimizer, total_steps=3)
    masks = [m.weight.mask() for m in model.modules() if isinstance(m, SparseLinear)]
    before = [p.detach().clone() for p in model.parameters()]
    x = torch.randn(64, 128)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    after = [m.weight.mask() for m in model.modules() if isinstance(m, SparseLinear)]
    assert all(torch.equal(a, b) for a, b in zip(masks, after, strict=True))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 16)
        self.gate, self.up, self.down = nn.Linear(16, 48), nn.Linear(16, 48), nn.Linear(48, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.query(x) * self.key(x)
        out: torch.Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


def test_which_layers_make_a_pair() -> None:
    assert list(pairs(Gated())) == [(["gate", "up"], "down", 48)]
    normed = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    assert list(pairs(normed)) == []
    narrow = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8))
    assert list(pairs(narrow)) == []
    with pytest.warns(UserWarning, match="left dense.*query, key"):
        model = SparseIFT("50%", "wide").prepare(Gated())
    assert model.gate.out_features == model.up.out_features == model.down.in_features == 96
    assert type(model.query) is nn.Linear
    assert model(torch.randn(2, 16)).shape == (2, 16)
    with pytest.raises(PatternError, match="no two linear layers"):
        SparseIFT("50%", "wide").prepare(narrow)
    assert type(narrow[0]) is nn.Linear


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_transformer(kind: Any) -> None:
    model = GPT(GPTConfig(vocabulary=64, context=8, width=64, depth=2, heads=4))
    before = macs(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "left dense")
        model = SparseIFT("1:4", method=kind).prepare(model)
    assert abs(macs(model) / before - 1.0) < 0.02
    assert model(torch.zeros(2, 8, dtype=torch.long)).shape == (2, 8, 64)


def test_bad_choices() -> None:
    for options in ({"method": "tall"}, {"nonlinearity": "tanh"}, {"pattern": "100%"}):
        with pytest.raises(RecipeError, match="SparseIFT got"):
            SparseIFT(**options)
    model = nn.Sequential(nn.Linear(10, 8))
    with pytest.raises(PatternError, match="multiple of 4"):
        SparseIFT("1:4").prepare(model)
    assert type(model[0]) is nn.Linear
