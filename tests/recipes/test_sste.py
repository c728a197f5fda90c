"""S-STE: the soft threshold is continuous, its scale frozen, its gradient the identity."""

import copy

import pytest
import torch
from torch import nn

from gossamer.errors import PatternError, RecipeError
from gossamer.masks import magnitude_mask
from gossamer.nn.layers.soft_threshold import SoftThresholdLinear
from gossamer.ops import mvue_product
from gossamer.recipes.sste import SSTE

PATTERNS = [("2:4", 2, 4), ("1:4", 1, 4), ("2:8", 2, 8), ("4:8", 4, 8), ("1:16", 1, 16)]


def soft(weight, n, m):
    """S(W) by sorting: the oracle."""
    groups = weight.reshape(weight.shape[0], -1, m)
    if n == m:
        return weight.clone()
    threshold = groups.abs().sort(dim=2).values[..., m - n - 1 : m - n]
    return (groups.sign() * (groups.abs() - threshold).clamp(min=0)).reshape(weight.shape)


def layer_of(weight, text, **options):
    linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    linear.weight.data.copy_(weight)
    return SSTE(text, **options).prepare(nn.Sequential(linear))[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("text", "n", "m"), [*PATTERNS, ("4:4", 4, 4)])
def test_forward_uses_the_soft_threshold(text, n, m, dtype):
    weight = torch.randn(12, 32).to(dtype)
    layer = layer_of(weight, text)
    assert isinstance(layer, SoftThresholdLinear)
    wanted = soft(weight, n, m)
    kept, square = weight.double() * wanted.double(), wanted.double().square()
    assert float(layer.beta) == pytest.approx(
        float(kept.sum() / square.sum()), rel=2e-2 if dtype == torch.bfloat16 else 1e-6
    )
    scaled = wanted.double() * layer.beta
    used = layer.used_weight()
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
    assert torch.allclose(used.double(), scaled, rtol=tolerance, atol=tolerance)
    assert bool(((used != 0).reshape(12, -1, m).sum(2) <= n).all())
    assert torch.equal(layer.mask(), magnitude_mask(weight, text))
    x = torch.randn(9, 32).to(dtype)
    reference = x.double() @ used.double().t() + layer.bias.double()
    assert torch.allclose(layer(x).double(), reference, rtol=tolerance, atol=10 * tolerance)


def test_scale_of_a_gaussian_is_1_48():
    torch.manual_seed(2)
    assert float(layer_of(torch.randn(512, 1024), "2:4").beta) == pytest.approx(1.48, abs=0.01)
    assert float(layer_of(torch.zeros(4, 8), "2:4").beta) == 1.0
    assert float(layer_of(torch.randn(4, 8), "4:4").beta) == 1.0


def test_ties_leave_fewer():
    used = layer_of(torch.tensor([[3.0, -3.0, 3.0, 1.0], [2.0, -2.0, 2.0, 2.0]]), "2:4")
    assert not used.used_weight().any()
    used = layer_of(torch.tensor([[3.0, -2.0, 2.0, 1.0]]), "2:4").used_weight()
    assert (used != 0).tolist() == [[True, False, False, False]]


@pytest.mark.parametrize(("text", "n", "m"), PATTERNS)
@pytest.mark.slow
def test_continuous_across_a_switch_of_the_mask(text, n, m):
    """Along a line between two weights the hard mask jumps; what is used moves with the step."""
    a, b = torch.randn(6, 32, dtype=torch.float64), torch.randn(6, 32, dtype=torch.float64)
    layer = layer_of(a, text)
    steps = 2000
    masks, switches, largest, hard = [], 0, 0.0, 0.0
    before = None
    for t in range(steps + 1):
        weight = a + (b - a) * t / steps
        layer.weight.data.copy_(weight)
        used = layer.used_weight()
        mask = layer.mask()
        if before is not None:
            largest = max(largest, float((used - before[0]).abs().max()))
            hard = max(hard, float((weight * mask - before[1]).abs().max()))
            switches += int((mask != before[2]).any())
        before = used, weight * mask, mask
        masks.append(mask)
    step = float((b - a).abs().max()) / steps
    assert switches > 20
    assert largest <= 2 * float(layer.beta) * step * (1 + 1e-9)  # |w| and the threshold both move
    assert hard > 20 * largest  # and the hard mask does jump


@pytest.mark.parametrize("text", ["2:4", "1:4", "2:8"])
def test_gradient_is_the_identity_not_scaled(text):
    layer = layer_of(torch.randn(8, 16), text)
    x = torch.randn(12, 16, requires_grad=True)
    y = layer(x)
    g = torch.randn_like(y)
    y.backward(g)
    assert torch.allclose(layer.weight.grad, g.t() @ x, atol=1e-4)
    assert torch.allclose(x.grad, g @ layer.used_weight(), atol=1e-4)
    assert torch.allclose(layer.bias.grad, g.sum(0), atol=1e-5)


def test_sampled_gradient():
    layer = layer_of(torch.randn(8, 16), "2:4", mvue="2:4", seed=3)
    x, g = torch.randn(10, 16), torch.randn(10, 8)
    layer(x).backward(g)
    assert torch.equal(layer.weight.grad, mvue_product(g, x, 2, 4, seed=3, step=0, layer=0))


def test_scale_is_frozen_and_part_of_the_state():
    recipe = SSTE("1:4")
    model = recipe.prepare(nn.Sequential(nn.Linear(16, 8)))
    optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.5)
    recipe.attach(model, optimizer, total_steps=5)
    beta = float(model[0].beta)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().sum().backward()
        optimizer.step()
        assert float(model[0].beta) == beta
    assert float(layer_of(model[0].weight.detach(), "1:4").beta) != beta
    other = SSTE("1:4").prepare(nn.Sequential(nn.Linear(16, 8)))
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    x = torch.randn(4, 16)
    assert torch.equal(other(x), model(x))
    outputs = model(x)
    finished = recipe.finish(model)
    assert torch.allclose(finished(x), outputs, atol=1e-6)
    assert finished[0].weight.density == 0.25


def test_it_learns():
    torch.manual_seed(0)
    recipe = SSTE("2:4")
    model = recipe.prepare(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8)))
    optimizer = torch.optim.AdamW(recipe.parameters(model), lr=1e-2)
    recipe.attach(model, optimizer, total_steps=150)
    for _ in range(150):
        x = torch.randn(32, 16)
        optimizer.zero_grad()
        loss = (model(x) - x[:, :8]).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.25


def test_bad_input():
    for build, error in [
        (lambda: SSTE("2:4:v4"), PatternError),
        (lambda: SSTE("90%"), PatternError),
        (lambda: SSTE(mvue="2:4:v4"), PatternError),
        (lambda: SSTE(seed=-1), RecipeError),
        (lambda: SSTE("2:8").prepare(nn.Linear(12, 4)), PatternError),
    ]:
        with pytest.raises(error):
            build()
