"""Lossless merging of ReLU neurons: same predictions, no more neurons than rank."""

import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import ArgumentError, DTypeError, ShapeError
from gossamer.pruning import merge_scales, optimal_prune


@pytest.fixture(autouse=True)
def _small() -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)


def contributions(model: nn.Sequential, x: Tensor) -> Tensor:
    first, second = model[0], model[2]
    return (first(x).relu()[:, None, :] * second.weight).flatten(0, 1).detach()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("samples", "inputs", "neurons", "outputs"),
    [(10, 3, 60, 1), (12, 4, 150, 2), (6, 2, 7, 1), (25, 2, 400, 3)],
)
def test_predictions_stay(
    samples: int, inputs: int, neurons: int, outputs: int, bias: bool
) -> None:
    model = nn.Sequential(
        nn.Linear(inputs, neurons, bias), nn.ReLU(), nn.Linear(neurons, outputs, bias)
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(samples, inputs)
    rank = int(torch.linalg.matrix_rank(contributions(model, x)))
    merged = optimal_prune(model, x)
    layer = merged.layers["0"]
    assert layer.rank == rank < neurons
    assert layer.neurons == (neurons, merged.model[0].out_features)
    assert layer.neurons[1] <= rank <= samples * outputs
    assert merged.model[2].in_features == len(merged.model[0].weight) == layer.neurons[1]
    assert bool((layer.scales >= 0).all())
    assert layer.error < 1e-12
    torch.testing.assert_close(merged.model(x), model(x), rtol=0, atol=1e-8)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    # Every remaining neuron is one of the old ones, scaled: it is active where that was.
    keep = layer.scales > 0
    assert torch.equal(merged.model[0](x) > 0, model[0](x)[:, keep] > 0)
    left = contributions(merged.model, x)
    assert int(torch.linalg.matrix_rank(left)) == left.shape[1]  # and they are independent now
    again = optimal_prune(merged.model, x)
    assert torch.equal(again.layers["0"].scales, torch.ones(left.shape[1]))


def test_one_step_is_the_papers() -> None:
    """Scales 1 - beta_j / beta_m with the largest |beta_m|, for one dependency."""
    generator = torch.Generator().manual_seed(3)
    fits = torch.randn(20, 5, generator=generator)
    beta = torch.tensor([0.5, -2.0, 1.0, 0.25, -1.0])
    fits[:, 4] = fits[:, :4] @ beta[:4]
    scales, rank = merge_scales(fits)
    assert rank == 4
    torch.testing.assert_close(scales, 1 - beta / beta[1], rtol=0, atol=1e-12)
    assert float(scales[1]) == 0
    assert bool(((scales >= 0) & (scales <= 2)).all())


@pytest.mark.parametrize("seed", range(20))
def test_random_dependencies(seed: int) -> None:
    """Duplicates (which fall at the same time), opposites, zeros and wide ranges of size."""
    generator = torch.Generator().manual_seed(seed)
    rows, inner, columns = (int(torch.randint(1, 12, (), generator=generator)) for _ in range(3))
    fits = torch.randn(rows, inner, generator=generator) @ torch.randn(
        inner, columns, generator=generator
    )
    fits = torch.cat([fits, fits, -fits[:, :1], torch.zeros(rows, 2), 1e-9 * fits[:, :2]], 1)
    fits = fits[:, torch.randperm(fits.shape[1], generator=generator)]
    scales, rank = merge_scales(fits)
    assert int((scales > 0).sum()) <= rank <= min(rows, inner)
    assert bool((scales >= 0).all())
    assert bool((scales[fits.norm(dim=0) == 0] == 0).all())
    torch.testing.assert_close(fits @ scales, fits.sum(1), rtol=0, atol=1e-10)


def test_two_equal_neurons_become_one_of_twice_the_size() -> None:
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight[:] = 3.0
        model[2].weight[:] = 4.0
    merged = optimal_prune(model, torch.tensor([[1.0], [2.0]])).model
    assert merged[0].weight.item() == pytest.approx(3 * 2**0.5)
    assert merged[2].weight.item() == pytest.approx(4 * 2**0.5)
    x = torch.randn(9, 1)  # the neurons are the same function, so it holds on any data
    torch.testing.assert_close(merged(x), model(x))


def test_every_hidden_layer_of_a_deep_network() -> None:
    model = nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(4, 80), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(80, 50), nn.Identity(), nn.ReLU(), nn.Linear(50, 1), nn.Sigmoid()),
    )
    x = torch.randn(8, 2, 2)
    merged = optimal_prune(model, x)
    assert list(merged.layers) == ["1.0", "2"]
    assert merged.layers["2"].neurons[1] <= 8
    assert merged.model.training
    torch.testing.assert_close(merged.model.eval()(x), model.eval()(x), rtol=0, atol=1e-8)


@pytest.mark.parametrize("neurons", [1, 10, 20])
def test_below_the_rank_it_beats_the_largest_neurons(neurons: int) -> None:
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 1, bias=False))
    x = torch.randn(200, 4)
    merged = optimal_prune(model, x, neurons=neurons)
    layer = merged.layers["0"]
    assert layer.neurons == (64, neurons)
    assert bool((layer.scales >= 0).all())
    off = (merged.model(x) - model(x)).detach()
    largest = model(x).detach().abs().max()
    assert layer.error == pytest.approx(float(off.abs().max() / largest), rel=1e-6)
    fits = contributions(model, x)
    kept = fits[:, fits.norm(dim=0).topk(neurons).indices].sum(1)
    assert float(off.norm()) < float((fits.sum(1) - kept).norm())


def test_the_neuron_that_goes_first_is_the_best() -> None:
    """Against all choices of a neuron and of the combination that replaces it."""
    fits = torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    scales, rank = merge_scales(fits, neurons=5)
    assert rank == 6
    lost = float((fits @ scales - fits.sum(1)).norm())
    best = torch.inf
    for i in range(6):
        others = [j for j in range(6) if j != i]
        beta = -torch.ones(6)
        beta[others] = torch.linalg.lstsq(fits[:, others], fits[:, i]).solution
        best = min(best, float((fits @ beta).norm() / beta.abs().max()))
    assert lost == pytest.approx(best, rel=1e-9)


def test_dead_layers_and_float32() -> None:
    model = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 2)).float()
    x = torch.randn(10, 3, dtype=torch.float32)
    merged = optimal_prune(model, x, tol=1e-6).model
    assert merged[0].out_features <= 20
    assert merged[0].weight.dtype == torch.float32
    torch.testing.assert_close(merged(x), model(x), rtol=0, atol=1e-5)
    with torch.no_grad():
        model[0].bias[:] = -100
    dead = optimal_prune(model, x)
    assert dead.model[0].out_features == 1
    assert dead.layers["0"].rank == 0
    assert torch.equal(dead.model(x), model(x))


def test_bad_input() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(10, 3)
    with pytest.raises(ArgumentError, match="neurons=0; it must be at least 1"):
        optimal_prune(model, x, neurons=0)
    with pytest.raises(DTypeError, match="optimal_prune got Linear"):
        optimal_prune(nn.Linear(3, 2), x)
    with pytest.raises(ArgumentError, match="without infinity or NaN"):
        optimal_prune(model, x * torch.nan)
    with pytest.raises(DTypeError, match=r"fits has dtype torch\.int64; float32"):
        merge_scales(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"fits has shape \[3\]"):
        merge_scales(torch.ones(3))
