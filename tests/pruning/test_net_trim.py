"""Net-Trim against linear programs and optimality conditions, and on networks."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from gossamer.errors import ArgumentError, DTypeError, ShapeError
from gossamer.pruning import net_trim, net_trim_layer


@pytest.fixture(autouse=True)
def _small() -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)


def problem(samples: int, inputs: int, outputs: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    return x, weight


def least_l1(x: np.ndarray, y: np.ndarray, relu: bool) -> float:
    """The smallest l1 norm of a weight row that gives y, by a linear program."""
    active = y > 1e-6 if relu else np.full(y.shape, True)
    n = x.shape[1]
    both = np.hstack([x, -x])
    result = linprog(
        np.ones(2 * n),
        A_eq=both[active],
        b_eq=y[active],
        A_ub=both[~active] if relu else None,
        b_ub=np.zeros((~active).sum()) if relu else None,
    )
    assert result.status == 0
    return float(result.fun)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
def test_without_slack_it_is_the_linear_program(relu: bool, seed: int) -> None:
    """Fewer samples than inputs: many weights give the outputs, one has the least l1 norm."""
    x, weight = problem(15, 25, 4, seed)
    y = x @ weight.T
    y = y.relu() if relu else y
    found = net_trim_layer(x, y, weight, 0.0, relu=relu, tol=1e-8, max_iter=60_000)
    assert found.converged
    best = sum(least_l1(x.numpy(), row, relu) for row in y.T.numpy())
    assert float(found.weight.abs().sum()) == pytest.approx(best, rel=1e-6)
    again = x @ found.weight.T
    torch.testing.assert_close(again.relu() if relu else again, y, rtol=0, atol=1e-5)
    assert found.residual < 1e-6
    assert found.misfit < 1e-5
    assert found.violation < 1e-5
    assert found.nonzeros[1] <= 4 * 15 < found.nonzeros[0]
    assert found.nonzeros[1] == int((found.weight != 0).sum())


@pytest.mark.parametrize("shape", [(60, 20, 6), (20, 40, 5)])
def test_a_linear_output_meets_the_optimality_conditions(shape: tuple[int, int, int]) -> None:
    """Lasso's: correlations with the residual are equal on the support, smaller off it."""
    x, weight = problem(*shape, seed=0)
    y = x @ weight.T
    eps = 0.2 * float(y.norm())
    found = net_trim_layer(x, y, weight, eps, relu=False, tol=1e-9, max_iter=50_000)
    assert found.converged
    assert found.misfit == pytest.approx(eps, rel=1e-6)  # the bound is used up
    correlation = (y - x @ found.weight.T).T @ x
    support = found.weight != 0
    level = float(correlation.abs().max())
    assert 0 < int(support.sum()) < support.numel()
    torch.testing.assert_close(
        correlation[support], level * found.weight[support].sign(), rtol=1e-4, atol=0
    )
    assert float(correlation[~support].abs().max()) <= level


def test_slack_makes_it_sparser() -> None:
    x, weight = problem(100, 30, 10, seed=1)
    y = (x @ weight.T).relu()
    found = [net_trim_layer(x, y, weight, share * float(y.norm())) for share in (0.0, 0.1, 0.4)]
    norms = [float(layer.weight.abs().sum()) for layer in found]
    counts = [layer.nonzeros[1] for layer in found]
    assert norms[0] > norms[1] > norms[2]
    assert counts[0] > counts[1] > counts[2]
    for layer in found:
        assert layer.converged
        assert layer.misfit <= layer.eps + 1e-3
        assert layer.violation < 1e-3
        assert layer.residual < 1e-6


def test_units_do_not_matter() -> None:
    x, weight = problem(50, 20, 5, seed=2)
    y = (x @ weight.T).relu()
    plain = net_trim_layer(x, y, weight, 1.0)
    other = net_trim_layer(1e3 * x, 1e-2 * y, 1e-5 * weight, 1e-2)
    assert other.iterations == plain.iterations
    torch.testing.assert_close(1e5 * other.weight, plain.weight, rtol=1e-6, atol=1e-9)


def test_a_bias_stays_and_counts() -> None:
    x, weight = problem(80, 20, 6, seed=3)
    bias = torch.randn(6)
    y = (x @ weight.T + bias).relu()
    found = net_trim_layer(x, y, weight, 0.0, bias=bias, tol=1e-9)
    torch.testing.assert_close((x @ found.weight.T + bias).relu(), y, rtol=0, atol=1e-6)


def test_no_step_left_is_told() -> None:
    x, weight = problem(50, 20, 5, seed=4)
    found = net_trim_layer(x, (x @ weight.T).relu(), weight, 0.1, max_iter=3)
    assert not found.converged
    assert found.iterations == 3
    assert found.residual > 1e-6


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(12, 20),
        nn.ReLU(),
        nn.Sequential(nn.Dropout(0.5), nn.Linear(20, 15, bias=False), nn.Dropout(0.5), nn.ReLU()),
        nn.Linear(15, 3),
    )


@pytest.mark.parametrize("method", ["parallel", "cascade"])
def test_a_network(method: str) -> None:
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(150, 12)
    trimmed = net_trim(model, x, 0.1, method=method)  # type: ignore[arg-type]
    assert list(trimmed.layers) == ["0", "2.1", "3"]
    assert trimmed.model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    small, full = trimmed.model.eval(), model.eval()
    given, wanted = x, x
    for name, layer, place in zip(trimmed.layers, trimmed.layers.values(), (0, 1, 2), strict=True):
        linear, original = small.get_submodule(name), full.get_submodule(name)
        outputs, found = original(wanted), linear(given if method == "cascade" else wanted)
        active = outputs > 1e-6 if place < 2 else torch.ones_like(outputs, dtype=torch.bool)
        misfit = ((found - outputs) * active).norm().item()
        assert misfit == pytest.approx(layer.misfit, rel=1e-6)
        assert misfit <= layer.eps * (1 + 1e-3)
        assert layer.eps >= 0.1 * (outputs * active).norm().item() * (1 - 1e-9)
        assert int((linear.weight != 0).sum()) == layer.nonzeros[1] < layer.nonzeros[0]
        given, wanted = linear(given), outputs
        if place < 2:
            given, wanted = given.relu(), wanted.relu()
    off = (small(x) - full(x)).norm() / full(x).norm()
    assert 0 < off.item() < 0.6


@pytest.mark.parametrize("method", ["parallel", "cascade"])
@pytest.mark.slow
def test_a_network_without_slack_gives_its_outputs_again(method: str) -> None:
    model = network().eval()
    x = torch.randn(150, 12)
    trimmed = net_trim(model, x, 0.0, method=method)  # type: ignore[arg-type]
    # Neurons that are hardly ever active pin their weights weakly: ADMM is slow there.
    torch.testing.assert_close(trimmed.model(x), model(x), rtol=0, atol=2e-4)
    assert all(layer.misfit < 1e-3 for layer in trimmed.layers.values())


def test_float32() -> None:
    model = network().float()
    trimmed = net_trim(model, torch.randn(100, 12, dtype=torch.float32), 0.2)
    assert {p.dtype for p in trimmed.model.parameters()} == {torch.float32}
    assert all((a.weight == 0).any() for a in trimmed.model.modules() if isinstance(a, nn.Linear))


def test_bad_input() -> None:
    x, weight = problem(10, 4, 3, seed=0)
    y = x @ weight.T
    with pytest.raises(ShapeError, match=r"inputs \[10, 4\], outputs \[9, 3\]"):
        net_trim_layer(x, y[:9], weight, 0.0)
    with pytest.raises(ShapeError, match="at least one sample"):
        net_trim_layer(x[:0], y[:0], weight, 0.0)
    for eps in (-1.0, float("nan")):
        with pytest.raises(ArgumentError, match="eps="):
            net_trim_layer(x, y, weight, eps)
        with pytest.raises(ArgumentError, match="eps="):
            net_trim(network(), x, eps)
    with pytest.raises(DTypeError, match=r"net_trim got Linear; an nn\.Sequential is needed"):
        net_trim(nn.Linear(4, 3), x)
    with pytest.raises(ArgumentError, match="choose 'parallel' or 'cascade'"):
        net_trim(network(), x, method="both")  # type: ignore[arg-type]
    bad = x.clone()
    bad[0, 0] = torch.nan
    with pytest.raises(ArgumentError, match="NaN"):
        net_trim_layer(bad, y, weight, 0.1)
