"""The sparsest ReLU networks: the exact minimum with one input, the training, and its files."""

import itertools
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.sparsest_relu import study as sparsest_relu
from experiments.sparsest_relu.exact import minimal_path_norm
from experiments.sparsest_relu.fit import FitConfig, fit
from experiments.sparsest_relu.model import ShallowReLU
from experiments.sparsest_relu.points import Points, load_points
from gossamer.errors import DataError

PEAK = (range(-2, 4), (0, 0, 1, 1, 0, 0))
Pairs = list[tuple[float, float]]


def changes_of(points: Pairs, slopes: list[tuple[float, float]]) -> list[float]:
    """Changes of slope of the function that leaves point j with slopes[j][1], comes with [j][0]."""
    found = []
    for j, (((x0, y0), (x1, y1)), (_, out), (into, _)) in enumerate(
        zip(pairwise(points), slopes, slopes[1:], strict=False)
    ):
        found.append(slopes[j][1] - slopes[j][0])
        chord = (y1 - y0) / (x1 - x0)
        if (out - chord) * (chord - into) > 0:  # the two lines meet between the points
            found.append(into - out)
        elif not (np.isclose(out, chord) and np.isclose(into, chord)):
            # Two knots: with the slope that makes the first and last fifth of the gap the lines.
            width = x1 - x0
            middle = (y1 - y0 - (out + into) * width / 5) / (width * 3 / 5)
            found += [middle - out, into - middle]
    found.append(slopes[-1][1] - slopes[-1][0])
    return found


@pytest.mark.parametrize(("p", "value"), [(0.4, 3.3195), (0.7, 3.6245), (1.0, 4.0), (0.0, 3.0)])
def test_peak_has_three_knots(p: float, value: float) -> None:
    best = minimal_path_norm(*PEAK, p)
    assert best.value == pytest.approx(2 + 2**p)
    assert best.value == pytest.approx(value, abs=5e-5)
    assert best.knots == pytest.approx((-1, 0.5, 2))
    assert best.changes == pytest.approx((1, -2, 1))
    if 0 < p < 1:
        assert best.value < 4  # of the straight lines from point to point


def random_points(seed: int, count: int) -> Pairs:
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(0, 4, count)) + np.arange(count) * 0.1
    y = rng.normal(size=count) if seed % 2 else x**2 + 0.05 * rng.normal(size=count)
    return list(zip(x.tolist(), y.tolist(), strict=True))


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_the_minimum_passes_through_the_points_and_is_what_it_says(p: float) -> None:
    for seed in range(40):
        points = random_points(seed, 2 + seed % 11)
        x, y = zip(*points, strict=True)
        best = minimal_path_norm(x, y, p)
        at = torch.tensor(x, dtype=torch.float64)
        torch.testing.assert_close(best(at), torch.tensor(y).double(), rtol=1e-6, atol=1e-6)
        assert list(best.knots) == sorted(best.knots)
        assert best.value == pytest.approx(sum(abs(c) ** p for c in best.changes))
        assert len(best.knots) <= max(0, len(points) - 2)
        chords = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(points)]
        total = sum(abs(b - a) for a, b in pairwise(chords))
        assert sum(map(abs, best.changes)) == pytest.approx(total)  # also minimal for p = 1


@pytest.mark.parametrize("seed", range(8))
def test_no_vertex_is_better(seed: int) -> None:
    # Every slope on both sides of every inner point is that of a chord before or after it: all
    # vertices of the polytope that holds the minimisers for p = 1, here without any recursion.
    points = random_points(seed, 6)
    chords = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(points)]
    choices = [[(a, a), (a, b), (b, b)] for a, b in pairwise(chords)]
    x, y = zip(*points, strict=True)
    for p in (0.1, 0.4, 0.8):
        least = np.inf
        for inner in itertools.product(*choices):
            slopes = [(chords[0], chords[0]), *inner, (chords[-1], chords[-1])]
            c = np.array(changes_of(points, slopes))
            least = min(least, (abs(c[abs(c) > 1e-12]) ** p).sum())
        assert minimal_path_norm(x, y, p).value == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))]
)
def test_no_random_interpolant_is_better(seed: int) -> None:
    # Any slopes, not only those of minimisers for p = 1: what the theorem says, tried.
    points, rng = random_points(seed, 5), np.random.default_rng(seed)
    chords = np.array([(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(points)])
    x, y = zip(*points, strict=True)
    best = {p: minimal_path_norm(x, y, p).value for p in (0.3, 0.7)}
    scale = np.ptp(chords)
    for _ in range(1500):
        around = np.concatenate([chords[:1], chords, chords[-1:]])
        slopes = [
            (
                around[j] if rng.random() < 0.5 else around[j] + scale * rng.normal() * 0.5,
                around[j + 1] if rng.random() < 0.5 else around[j + 1] + scale * rng.normal() * 0.5,
            )
            for j in range(len(points))
        ]
        # Outside the points any slope will do without a knot there.
        slopes[0], slopes[-1] = (slopes[0][1],) * 2, (slopes[-1][0],) * 2
        c = np.array(changes_of(points, slopes))
        for p, value in best.items():
            assert (abs(c[abs(c) > 1e-12]) ** p).sum() >= value * (1 - 1e-9)


def test_lines_and_order() -> None:
    assert minimal_path_norm((0, 1), (3, 5), 0.5).knots == ()
    assert minimal_path_norm((0, 1, 2, 3.5), (1, 3, 5, 8), 0.5).value == 0
    flat = minimal_path_norm((0, 1, 2, 3, 4), (0, 0, 1, 2, 4), 0.5)
    assert flat.knots == (1.0, 3.0)  # three points on a line between two bends of one sign
    shuffled = minimal_path_norm((3, -2, 0, 2, 1, -1), (0, 0, 1, 0, 1, 0), 0.4)
    assert shuffled == minimal_path_norm(*PEAK, 0.4)


@pytest.mark.parametrize(
    ("x", "y", "p", "words"),
    [
        ((0,), (1,), 0.5, "at least two points"),
        ((0, 1), (1,), 0.5, "2 x and 1 y"),
        ((0, 0.0), (1, 2), 0.5, "two points at x = 0"),
        ((0, float("nan")), (1, 2), 0.5, "not finite"),
        ((0, 1), (1, 2), 1.5, "p is 1.5"),
    ],
)
def test_bad_points(x: tuple[float], y: tuple[float], p: float, words: str) -> None:
    with pytest.raises(DataError, match=words):
        minimal_path_norm(x, y, p)


@pytest.mark.parametrize("name", ["peak", "random"])
def test_the_gradient_is_autograds(name: str) -> None:
    model = ShallowReLU(load_points(name), neurons=13, seed=3)
    with torch.no_grad():
        loss = model.gradient()
    theta = model.theta.clone().requires_grad_()
    v, w, bias, line = model._views(theta, 13, model.inputs.shape[1])
    x = model.inputs
    out = (x @ w.t() + (0 if bias is None else bias)).relu() @ v
    if line is not None:
        out = out + line[0] * x[:, 0] + line[1]
    wanted = (out - model.points.y).square().mean()
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(model.grad, theta.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(model.points.x), out.detach())


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_peak_is_learned_with_three_neurons(seed: int) -> None:
    points = load_points("peak")
    result = fit(points, FitConfig(p=0.4, epochs=12_000, seed=seed))
    assert result.last.neurons == 3
    assert result.last.mse < 1e-6
    places, changes = zip(*result.model.kinks(), strict=True)
    assert places == pytest.approx((-1, 0.5, 2), abs=5e-3)
    assert changes == pytest.approx((1, -2, 1), abs=5e-3)
    assert result.last.path_norm == pytest.approx(minimal_path_norm(*PEAK, 0.4).value, rel=1e-3)
    assert result.model.refit() <= result.last.mse * 1.01
    counts = [row.neurons for row in result.rows]
    assert counts[0] == 80
    assert counts == sorted(counts, reverse=True)  # what is zero stays zero


@pytest.mark.slow
def test_random_data_take_few_nonzeros() -> None:
    result = fit(load_points("random"), FitConfig(p=0.4, neurons=100, epochs=8000, seed=1))
    assert result.last.nonzeros <= 14
    assert result.last.mse < 1e-6
    assert result.rows[0].nonzeros == 100 * 51


def test_the_reweighted_split_learns_as_well() -> None:
    result = fit(load_points("peak"), FitConfig("reweighted", 0.4, epochs=4000))
    assert result.last.neurons < 30
    assert result.last.mse < 1e-2


def test_one_seed_one_result() -> None:
    config = FitConfig(epochs=300)
    once, again = (fit(load_points("peak"), config) for _ in range(2))
    assert torch.equal(once.model.theta, again.model.theta)
    assert not torch.equal(
        once.model.theta, fit(load_points("peak"), FitConfig(epochs=300, seed=1)).model.theta
    )
    assert [row.epoch for row in once.rows] == sorted({row.epoch for row in once.rows})
    assert once.rows[-1].epoch == 300


def test_coincident_kinks_count_as_one_when_merged() -> None:
    model = ShallowReLU(load_points("peak"), neurons=4, seed=0)
    v, w, bias, _ = model.parts
    assert bias is not None
    v.copy_(torch.tensor([1.0, -2.0, 3.0, 1e-9]))
    w.copy_(torch.tensor([[1.0], [-2.0], [1.0], [1.0]]))
    bias.copy_(torch.tensor([-0.5, 1.0, -2.0, 0.0]))  # kinks at 0.5, 0.5, 2 and one that is zero
    assert model.kinks() == [(0.5, -4.0), (0.5, 1.0), (2.0, 3.0)]
    assert model.distinct_kinks() == [(0.5, -3.0), (2.0, 3.0)]


def test_run_writes_its_files(tmp_path: Path) -> None:
    numbers = sparsest_relu.run("peak", FitConfig(epochs=400), tmp_path / "new")
    stored = json.loads((tmp_path / "new" / "result.json").read_text())
    assert stored["neurons_left"] == numbers["neurons_left"] == stored["history"][-1][1]
    assert stored["minimal_neurons"] == 3
    assert (tmp_path / "new" / "result.png").stat().st_size > 10_000
    words = sparsest_relu.in_words(numbers)
    assert "the least path norm through these points is 3.3195, with 3 neurons" in words
    assert "does not pass" in words
    assert "does not pass" not in sparsest_relu.in_words(numbers | {"interpolates": True})
    table = tmp_path / "points.csv"
    table.write_text("0,1,0.5\n1,0,2\n\n1,1,-1\n")
    numbers = sparsest_relu.run(str(table), FitConfig(epochs=50, neurons=5), tmp_path)
    assert "minimal_path_norm" not in numbers


def test_study_writes_its_files(tmp_path: Path) -> None:
    numbers = sparsest_relu.study(tmp_path, seeds=1, epochs=60)
    assert len(numbers) == 2 * len(sparsest_relu.STUDY_RUNS)
    text = (tmp_path / "sparsest-relu.md").read_text()
    assert "| exact | 0.4 | 60 |" in text
    assert "| adamw | – | 60 |" in text
    assert len(json.loads((tmp_path / "sparsest-relu.json").read_text())["runs"]) == len(numbers)
    assert (tmp_path / "sparsest-relu.png").stat().st_size > 10_000


def test_data(tmp_path: Path) -> None:
    assert load_points("random").x.shape == (10, 50)
    assert not torch.equal(load_points("random:1").x, load_points("random").x)
    assert load_points("sine").univariate
    assert not load_points("random").univariate
    bad = tmp_path / "bad.csv"
    for text, words in [
        ("1,2\n3,x\n", "no table of numbers"),
        ("1,2\n3\n", "no table of numbers"),
        ("1,2\n", "1 lines of 2"),
        ("1\n2\n", "2 lines of 1"),
        ("", "0 lines of 0"),
        ("1,2\n3,nan\n", "not finite"),
        ("1,2\n3,4\n1,5\n", "two lines with the same inputs"),
    ]:
        bad.write_text(text)
        with pytest.raises(DataError, match=words):
            load_points(str(bad))
    with pytest.raises(DataError, match="no data 'peek'"):
        load_points("peek")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"method": "sgd"}, "one of exact, reweighted, adam, adamw"),
        ({"p": 0.0}, r"p is 0.0; a number in \(0, 1\]"),
        ({"p": float("nan")}, "p is nan"),
        ({"neurons": 0}, "neurons is 0"),
        ({"epochs": -3}, "epochs is -3"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"guard": float("inf")}, "guard is inf"),
        ({"penalty": -1.0}, "penalty is -1.0"),
    ],
)
def test_bad_configs(config: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        FitConfig(**config)  # type: ignore[arg-type]


def test_a_training_that_leaves_the_numbers_says_so(tmp_path: Path) -> None:
    huge = Points("huge", torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 1e30]))
    with pytest.raises(DataError, match="left the numbers at epoch"):
        fit(huge, FitConfig(epochs=50))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write to"):
        sparsest_relu.run("peak", FitConfig(epochs=1), tmp_path / "file" / "below")
