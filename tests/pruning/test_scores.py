"""Scores by gradients and activations equal their definitions, entry by entry."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

import gossamer
from gossamer import ArgumentError
from gossamer.pruning import drawn, fisher, grasp, snip, wanda

pytestmark = pytest.mark.filterwarnings("ignore:.*outputs that read nothing")
DTYPE = torch.float64


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), Conv1D(4, 8), nn.Tanh(), nn.Linear(4, 3)
    ).to(DTYPE)


def batch(rows: int = 16) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 6, generator=random, dtype=DTYPE)
    return x, torch.randint(3, (rows,), generator=random)


def loss_of(model: nn.Module, rows: slice = slice(None)) -> Tensor:
    x, y = batch()
    return F.cross_entropy(model(x[rows]), y[rows])


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights with outputs as rows, by layer."""
    layers = model[0].weight, model[3].weight.t(), model[5].weight
    return dict(zip("035", (w.detach() for w in layers), strict=True))


def moved(name: str, row: int, col: int, by: float) -> nn.Module:
    model = network()
    with torch.no_grad():
        weights(model)[name][row, col] += by
    return model


def slope(name: str, row: int, col: int, rows: slice) -> float:
    up, down = (loss_of(moved(name, row, col, s * 1e-5), rows).item() for s in (1, -1))
    return (up - down) / 2e-5


def test_snip_and_fisher_are_first_order_changes() -> None:
    found = snip(network(), loss_of)
    squares = fisher(
        network(), [lambda m, i=i: loss_of(m, slice(4 * i, 4 * i + 4)) for i in range(4)]
    )
    for name, w in weights(network()).items():
        assert found[name].shape == squares[name].shape == w.shape
        for row, col in ((0, 0), (2, 3), (w.shape[0] - 1, w.shape[1] - 1)):
            value = float(w[row, col])
            expected = abs(slope(name, row, col, slice(None)) * value)
            assert float(found[name][row, col]) == pytest.approx(expected, rel=1e-5, abs=1e-10)
            parts = [slope(name, row, col, slice(4 * i, 4 * i + 4)) ** 2 for i in range(4)]
            mean = sum(parts) / 4 * value**2
            assert float(squares[name][row, col]) == pytest.approx(mean, rel=1e-4, abs=1e-10)


def test_grasp_is_the_fall_of_the_gradient_norm() -> None:
    """w (H g) is half the slope of ||g||^2 along a weight, times the weight."""
    found = grasp(network(), loss_of)

    def size(model: nn.Module) -> float:
        layers = [model[0].weight, model[3].weight, model[5].weight]
        grads = torch.autograd.grad(loss_of(model), layers)
        return float(sum(g.square().sum() for g in grads))

    for name, w in weights(network()).items():
        for row, col in ((0, 0), (1, 2)):
            up, down = (size(moved(name, row, col, s * 1e-5)) for s in (1, -1))
            expected = float(w[row, col]) * (up - down) / (4 * 1e-5)
            assert float(found[name][row, col]) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_wanda_of_linear_layers() -> None:
    model = network().eval()
    x, _ = batch()
    found = wanda(model, [x[:5], (x[5:],)])
    inputs = [x, model[:3](x), model[:5](x)]
    for (name, w), before in zip(weights(model).items(), inputs, strict=True):
        expected = w.detach().abs() * before.detach().norm(dim=0)
        torch.testing.assert_close(found[name].to(DTYPE), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"padding": 1}, {"stride": 2, "groups": 2}, {"padding": 1, "padding_mode": "circular"}],
)
def test_wanda_of_convolutions(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, **options)
    x = torch.randn(2, 4, 7, 7)
    (score,) = wanda(nn.Sequential(conv), [x]).values()
    pad = conv.padding[0]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = F.pad(x, (pad,) * 4, mode=mode)
    patches = F.unfold(padded, 3, stride=conv.stride)  # [n, channels * 9, pixels]
    norms = patches.square().sum((0, 2)).sqrt().view(4, 3, 3)
    per = 4 // conv.groups
    for out in range(6):
        first = out // (6 // conv.groups) * per
        expected = conv.weight[out].detach().abs() * norms[first : first + per]
        torch.testing.assert_close(score[out], expected, rtol=1e-5, atol=1e-6)


def test_nothing_changes_in_the_model() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    model[0].weight.grad = torch.ones_like(model[0].weight)
    snip(model, loss_of)
    fisher(model, [loss_of])
    grasp(model, loss_of)
    wanda(model, [batch()[0]])
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert bool((model[0].weight.grad == 1).all())
    assert model[5].weight.grad is None
    assert not model[0]._forward_pre_hooks


@pytest.mark.parametrize("pattern", ["75%", "2:4", "50%:v4"])
def test_they_choose_masks(pattern: str) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), Conv1D(8, 8))
    x = torch.randn(32, 16)
    scores = wanda(dense, [x])
    sparse = gossamer.sparsify(copy.deepcopy(dense), pattern, score=scores)
    for name in ("0", "2"):
        kept = sparse.get_submodule(name).mask()
        pooled = scores[name]
        if pattern == "50%:v4":
            pooled = pooled.view(2, 4, -1).sum(1)
            kept = kept[::4]
        if pattern == "2:4":
            pooled, kept = pooled.reshape(-1, 4), kept.reshape(-1, 4)
            assert torch.equal(kept, pooled.argsort(1).argsort(1) >= 2)
        else:
            assert pooled[kept].min() >= pooled[~kept].max()


def test_draws_follow_the_scores() -> None:
    """The first place is drawn with the probability of the score; zeros come last."""
    scores = torch.tensor([0.0, 1.0, 2.0, 5.0])
    random = torch.Generator().manual_seed(0)
    counts = torch.zeros(4)
    for _ in range(4000):
        order = drawn({"w": scores}, random)["w"].argsort(descending=True)
        counts[order[0]] += 1
        assert order[-1] == 0
    torch.testing.assert_close(counts / 4000, scores / 8, atol=0.03, rtol=0)
    with pytest.raises(ArgumentError, match="below 0"):
        drawn({"w": -scores})


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: snip(nn.ReLU(), lambda m: torch.zeros(())), "no linear layer"),
        (lambda: snip(network(), lambda m: torch.zeros(())), "does not depend"),
        (lambda: grasp(network(), lambda m: 3.0), "does not depend"),
        (lambda: fisher(network(), []), "no losses"),
        (lambda: wanda(network(), []), "no batches"),
        (lambda: wanda(network(), [torch.zeros(3, 7, dtype=DTYPE)]), r"inputs of \[3, 7\]"),
    ],
)
def test_bad_input_has_one_clear_error(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        call()
