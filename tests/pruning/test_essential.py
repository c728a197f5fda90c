"""Essential sparsity: every point is a cut of a copy, and the model stays what it was."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import gossamer
from gossamer import ArgumentError, PatternError
from gossamer.commands import app
from gossamer.pruning import Essential, Point, essential, random_scores, random_search

X = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8)).eval()


TARGET = network()(X).detach()


def loss(model: nn.Module) -> Tensor:
    return 1.0 + (model(X) - TARGET).square().mean().detach()


def test_points_are_those_of_dense_weights_with_zeros() -> None:
    """The oracle zeroes the smallest magnitudes of each layer."""
    model = network()
    found = essential(model, loss, [0.0, 0.25, 0.5], ["2:4"], by_layer=True)

    def oracle(sparsity: float, names: tuple[str, ...], group: int = 0) -> float:
        cut = network()
        for name in names:
            weight = cut.get_submodule(name).weight.data
            rows = weight.view(-1, group) if group else weight.view(1, -1)
            drop = rows.abs().argsort(1)[:, : round(sparsity * rows.shape[1])]
            rows.scatter_(1, drop, 0.0)
        return float(loss(cut))

    for point, sparsity in zip(found.curve, (0.0, 0.25, 0.5), strict=True):
        assert point.sparsity == sparsity
        assert point.value == pytest.approx(oracle(sparsity, ("0", "3")), rel=1e-5)
        for name in ("0", "3"):
            alone = found.layers[name][(0.0, 0.25, 0.5).index(sparsity)]
            assert alone.value == pytest.approx(oracle(sparsity, (name,)), rel=1e-5)
    assert found.patterns["2:4"].value == pytest.approx(oracle(0.5, ("0", "3"), 4), rel=1e-5)
    assert found.dense == 1.0


def test_the_knee_is_the_last_point_within() -> None:
    curve = tuple(Point(s, v) for s, v in ((0.1, 1.0), (0.3, 1.009), (0.5, 1.02), (0.7, 2.0)))
    assert Essential(1.0, curve).knee == 0.3
    assert Essential(1.0, curve, tolerance=0.0).knee == 0.1
    assert Essential(1.0, curve, tolerance=0.05).knee == 0.5
    assert Essential(0.9, curve).knee == 0.0
    # A value with a minus: 1 % of 0.9 is lost at -0.891.
    accuracies = tuple(Point(s, v) for s, v in ((0.1, -0.895), (0.2, -0.892), (0.3, -0.88)))
    assert Essential(-0.9, accuracies).knee == 0.2
    assert Essential(1.0, (Point(0.5, float("nan")),)).knee == 0.0


def test_the_model_stays_as_it_was_also_on_error() -> None:
    model = network().train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, modules = copy.deepcopy(model.state_dict()), list(model.modules())
    calls = 0

    def breaks(given: nn.Module) -> float:
        nonlocal calls
        calls += 1
        given.eval()
        with torch.no_grad():
            for parameter in given.parameters():
                parameter.zero_()
        if calls == 3:
            raise RuntimeError("of the user")
        return 1.0

    with pytest.raises(RuntimeError, match="of the user"):
        essential(model, breaks)
    assert list(model.modules()) == modules
    assert all(module.training for module in modules)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert bool((model[0].weight.grad == 1).all())


def test_attention_scores_and_a_bare_layer() -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    found = essential(block, lambda m: m(x).detach().norm(), [0.5], [], by_layer=True)
    assert list(found.layers) == [
        "self_attn.out_proj.weight", "self_attn.in_proj_weight", "linear1", "linear2"
    ]  # fmt: skip
    layer = nn.Linear(8, 8)
    weights = {"": torch.arange(64.0).view(8, 8)}
    x = torch.eye(8)

    def kept(model: nn.Module) -> Tensor:
        return ((model(x) - layer.bias) != 0).sum(0)[:4].sum()

    assert essential(layer, kept, [0.5], [], weights).curve[0].value == 0.0


def test_table_and_picture(tmp_path: Path) -> None:
    found = essential(network(), loss, [0.5], by_layer=True)
    text = str(found)
    assert f"knee at {found.knee:.3g}, tolerance 0.01 of dense" in text
    for word in ("dense", "all layers", "2:4", "1:4", "0: knee", "3: knee"):
        assert word in text
    found.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cut_of_mine.py").write_text(
        "import torch\n"
        "def make():\n"
        "    return torch.nn.Linear(16, 16), lambda m: m(torch.ones(16)).detach().norm()\n"
        "def wrong():\n"
        "    return torch.nn.Linear(16, 16), torch.ones(16)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    run = ["essential", "cut_of_mine.py:make", "--pattern", "1:8", "--picture", "p.png"]
    result = CliRunner().invoke(app, [*run, "--tolerance", "0.5", "--by-layer"])
    assert result.exit_code == 0, result.output
    assert "1:8" in result.output
    assert "tolerance 0.5" in result.output
    assert (tmp_path / "p.png").exists()
    result = CliRunner().invoke(app, ["essential", "cut_of_mine.py:wrong"])
    assert isinstance(result.exception, ArgumentError)
    assert "(model, evaluate)" in str(result.exception)


def test_bad_input() -> None:
    with pytest.raises(ArgumentError, match=r"sparsity 1\.0"):
        essential(network(), loss, [0.5, 1.0])
    with pytest.raises(ArgumentError, match="evaluate returned a Tensor"):
        essential(network(), lambda m: m(X))
    with pytest.raises(ArgumentError, match="tolerance"):
        essential(network(), loss, [0.5], tolerance=-1.0)
    with pytest.raises(PatternError, match="3:7"):
        essential(network(), loss, [], ["3:7"])
    model = network()
    model.lock = (i for i in range(3))  # type: ignore[assignment]
    with pytest.raises(ArgumentError, match="cannot be copied"):
        essential(model, loss)
    with pytest.raises(ArgumentError, match="by_layer=True"):
        Essential(1.0, ()).layer_knee("0")


@pytest.mark.parametrize("pattern", ["75%", "2:4"])
def test_random_search_finds_its_best_again(pattern: str) -> None:
    model = network()
    found = random_search(model, pattern, loss, tries=5, seed=3)
    values = []
    for seed in range(3, 8):
        sparse = gossamer.sparsify(network(), pattern, score=random_scores(seed))
        values.append(float(loss(sparse)))
    assert found.values == tuple(values)
    assert len(set(values)) == 5
    assert found.value == min(values) == values[found.seed - 3]
    again = gossamer.sparsify(network(), pattern, score=found.score)
    assert float(loss(again)) == found.value
    assert random_search(model, pattern, lambda m: float("nan"), tries=2).seed == 0


def test_random_masks_differ_by_layer_and_are_even() -> None:
    score = random_scores(0)
    a, b = score("a", torch.ones(64, 64)), score("b", torch.ones(64, 64))
    assert not torch.equal(a, b)
    assert torch.equal(a, score("a", torch.zeros(64, 64)))
    assert abs(float(a.mean()) - 0.5) < 0.02
