"""prune(): the smaller model is the model with zeroed groups, within its budget."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer
from gossamer.errors import ArgumentError, DTypeError, GossamerError, PatternError
from gossamer.pruning import ShrinkReport, prune, shrink, structured
from gossamer.pruning.following import followed
from gossamer.pruning.groups import Groups
from gossamer.pruning.report import cost_of
from support.networks import NETWORKS, Residual
from support.submodels import redrawn, zeroed

pytestmark = pytest.mark.usefixtures("one_thread")


class Shuffled(nn.Module):
    """Half of the channels pass, the other half is transformed; then they are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.inner = nn.Sequential(nn.Conv2d(8, 24, 1), nn.BatchNorm2d(24), nn.Conv2d(24, 8, 1))
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        x = torch.cat([left, self.inner(right)], 1)
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(x)


class Gated(nn.Module):
    """A gated layer whose two halves come from one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 32, bias=False), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * value)


class Chosen(nn.Module):
    """Features that are chosen by comparisons, and masked by place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 20), nn.Linear(6, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        a = torch.where(a > 0.1 * b, a, -0.2 * a).masked_fill(b.ge(3.0), 0.5)
        return self.c(torch.maximum(a, b).masked_fill(x[:, :1] > 1, 0.0))


def grouped() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 24, 3, groups=4), nn.ReLU(), nn.Conv2d(24, 5, 1)),
    )


def upscaled() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 12, 2, 2), nn.Sigmoid()),
        nn.Conv2d(12, 3, 3, padding=1),
    )


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = NETWORKS | {
    "shuffled": (Shuffled, (2, 3, 5, 5)),
    "gated": (Gated, (4, 6)),
    "chosen": (Chosen, (4, 6)),
    "grouped": (grouped, (2, 3, 6, 6)),
    "upscaled": (upscaled, (2, 3, 6, 6)),
}


def drawn(name: str) -> tuple[nn.Module, Tensor]:
    """A network in float64 of random numbers that occur once each, and an example."""
    torch.manual_seed(0)
    make, shape = CASES[name]
    return redrawn(make()), torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("budget", ["flops", "bytes"])
@pytest.mark.parametrize("name", CASES)
def test_the_result_is_the_model_with_zeroed_groups(name: str, budget: str) -> None:
    model, x = drawn(name)
    before = copy.deepcopy(model.state_dict())
    smaller, report = prune(model, x, 0.5, budget=budget, report=True)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert isinstance(report, ShrinkReport)
    assert type(smaller) is type(model)
    assert smaller.training

    costs = [cost_of(m.eval(), (x,), budget) for m in (model, smaller)]
    assert 0.25 * costs[0] < costs[1] <= 0.5 * costs[0]
    if budget == "flops":
        assert report.flops == tuple(costs)
    expected = zeroed(model, smaller).eval()
    for batch in (1, 5):
        y = torch.randn(batch, *x.shape[1:], dtype=torch.float64)
        torch.testing.assert_close(smaller(y), expected(y), rtol=0, atol=1e-12)

    smaller.train()(torch.cat([x, x])).square().mean().backward()
    assert all(p.grad is not None for p in smaller.parameters())


def test_what_is_small_goes_and_what_is_large_stays() -> None:
    model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3))
    with torch.no_grad():
        model[0].weight[::3] *= 10
    smaller = prune(model, torch.ones(1, 5), keep=1 / 3)
    assert torch.equal(smaller[0].weight, model[0].weight[::3])
    assert torch.equal(smaller[2].weight, model[2].weight[:, ::3])


def test_both_branches_of_a_sum_decide() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), Residual(6, 6), nn.Conv2d(6, 2, 1))
    with torch.no_grad():
        model[0].weight[:3] *= 30  # large in one branch
        model[1].conv2.weight[1:4] *= 30  # and in the other
        model[1].bn2.weight[:] = 1
    smaller = prune(model, torch.randn(1, 3, 4, 4), keep=0.45)
    kept = smaller[0].out_channels
    assert kept == smaller[1].conv2.out_channels == smaller[2].in_channels == 4
    assert torch.equal(smaller[0].weight, model[0].weight[[0, 1, 2, 3]])


def test_sizes_are_rounded_and_layers_never_empty() -> None:
    model = nn.Sequential(nn.Linear(5, 50), nn.ReLU(), nn.Linear(50, 6), nn.Linear(6, 2))
    x = torch.ones(2, 5)
    smaller = prune(model, x, 0.5, round_to=8)
    assert smaller[0].out_features % 8 == 0
    assert smaller[2].out_features == 6  # less than 8: it stays
    least = prune(model, x, 0.0143)
    assert (least[0].out_features, least[2].out_features) == (1, 1)
    with pytest.raises(ArgumentError, match=re.escape("prune cannot reach 11 flops; the least")):
        prune(model, x, 0.005)
    assert prune(model, x, 1.0)[0].out_features == 50


def test_what_is_excluded_stays() -> None:
    model, x = drawn("mlp")
    smaller = prune(model, x, 0.8, exclude="3")
    assert smaller[3].weight.shape == model[3].weight.shape
    assert smaller[5].out_features < model[5].out_features
    with pytest.raises(PatternError, match="exclude='layers' matches no module"):
        prune(model, x, 0.5, exclude=["layers"])


def test_the_budget_is_what_is_counted() -> None:
    """A convolution has most operations, a Linear layer most bytes: each budget cuts its own."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 3, padding=1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 512), nn.ReLU(), nn.Linear(512, 10)),
    )
    x = torch.randn(1, 3, 32, 32)
    assert prune(model, x, 0.9, exclude="5")[0].out_channels == 14
    with pytest.raises(ArgumentError, match="the least of this model"):
        prune(model, x, 0.9, exclude=["0", "2"])
    assert prune(model, x, 0.6, budget="bytes", exclude=["0", "2"])[5].out_features < 300


class Fixed(nn.Module):
    """A forward with a number of features written down where no rule sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 8)
        self.c, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = torch.relu(self.b(x)) / len(self.b.weight)
        return self.head(torch.relu(self.c(x)))


def test_what_a_rule_does_not_see_is_found_by_trial() -> None:
    """The layer whose size the forward computes with is kept, and named; others shrink."""
    torch.manual_seed(0)
    smaller, report = prune(Fixed(), torch.randn(3, 4), 0.7, report=True)
    assert smaller.b.out_features == 8
    assert smaller.a.out_features < 8
    assert smaller.c.out_features < 8
    assert [note.split(":")[0] for note in report.notes] == ["b", "head"]
    assert report.notes[0].startswith("b: without some of these features the model fails (")
    assert report.notes[1] == "head: they are outputs of the model"


def test_rounding_that_a_deep_network_enlarges_is_no_difference() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(32, 300)]
    for _ in range(12):
        layers += [nn.Linear(300, 300), nn.Tanh()]
        nn.init.normal_(layers[-2].weight, std=6 * 300**-0.5)
    model, x = nn.Sequential(*layers, nn.Linear(300, 2)), torch.randn(4, 32)
    smaller, report = prune(model, x, report=True)
    assert len(report.notes) == 1
    assert smaller[0].out_features < 300
    with torch.no_grad():
        groups, total = structured.groups_of(model, (x,), "flops", 1, (), "")
        groups.zero_(model, structured.chosen(groups, groups.sizes(model), total / 2, "", []))
        in_float32 = (smaller(x) - model(x)).abs().max()
        assert float(in_float32) > 1e-5
        assert float((smaller.double()(x.double()) - model.double()(x.double())).abs().max()) < 1e-9


def test_a_wrong_cut_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = drawn("mlp")
    cut = structured.resize_all

    def wrong(smaller: nn.Module, *rest: object) -> None:
        cut(smaller, *rest)  # type: ignore[arg-type]
        smaller[9].bias.data += 1  # type: ignore[index, union-attr, operator]

    monkeypatch.setattr(structured, "resize_all", wrong)
    with pytest.raises(ArgumentError, match="prune cannot reach"):
        prune(model, x, 0.5)  # all layers turn out to be guilty


def test_parts_that_the_example_does_not_reach_are_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
            self.side = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            return self.head(x) + self.side(x) if self.training else self.head(x)

    smaller, report = prune(Net(), torch.randn(2, 4), report=True)
    assert smaller.body.out_features == 4
    assert report.notes[1:] == ("side: " + structured._NOT_REACHED,)


@dataclass
class Result:
    hidden: Tensor
    logits: Tensor


def test_features_in_any_output_stay() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.up, self.head = nn.Linear(4, 8), nn.Linear(8, 40), nn.Linear(40, 2)

        def forward(self, x: Tensor) -> Result:
            hidden = self.first(x)
            return Result(hidden, self.head(torch.relu(self.up(hidden))))

    smaller, report = prune(Net(), torch.randn(3, 4), report=True)
    assert smaller(torch.randn(3, 4)).hidden.shape == (3, 8)
    assert smaller.up.out_features < 40
    assert report.notes == ("first, head: they are outputs of the model",)


def test_weights_that_functions_read_are_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(8, 4))
            self.up, self.head = nn.Linear(8, 40), nn.Linear(40, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.up(F.linear(x, self.matrix))))

    smaller, report = prune(Net(), torch.randn(3, 4), report=True)
    assert smaller.up.out_features == 20
    assert report.notes[1] == "matrix: functions read it, outside of a layer with a rule"


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_models_in_wrappers() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(1, 4)
    smaller = prune(nn.DataParallel(model), x)
    assert smaller.module[0].out_features == 4
    for wrapped, text in (
        (torch.jit.script(model), "got a module of torch.jit; give the ordinary model"),
        (nn.Sequential(torch.compile(model)), "got a module of torch.compile (0)"),
        (copy.deepcopy(model).to("meta"), "parameters on the device meta (0)"),
    ):
        for function in (prune, shrink):
            with pytest.raises(ArgumentError, match=re.escape(text)):
                function(wrapped, x)
    with pytest.raises(ArgumentError, match="no flops; give an example with at least one row"):
        prune(model, torch.ones(0, 4))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((nn.Linear(2, 2), torch.ones(1, 3)), ArgumentError, "raises RuntimeError for inputs of"),
        ((nn.Linear(2, 2), torch.ones(1, 2), 0.0), ArgumentError, "keep=0.0; it must be above 0"),
        ((nn.Linear(2, 2), torch.ones(1, 2), 1.5), ArgumentError, "at most 1"),
        (([], torch.ones(1, 2)), DTypeError, "a Module is needed"),
        (
            (nn.Linear(2, 2), torch.ones(1, 2)),
            ArgumentError,
            "the least of this model is 8, because",
        ),
    ],
)
def test_errors(arguments: tuple[object, ...], error: type[GossamerError], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        prune(*arguments)  # type: ignore[call-overload]


def test_the_same_each_time() -> None:
    model, x = drawn("resnet")
    state = torch.random.get_rng_state()
    one, two = (gossamer.prune(model, x, 0.4) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_costs_are_those_of_the_smaller_model(name: str) -> None:
    """What the choice predicts is what is counted afterwards, for any choice."""
    model, x = drawn(name)
    model.eval()
    for budget in ("flops", "bytes"):
        total = cost_of(model, (x,), budget)
        groups = Groups(followed(copy.deepcopy(model), (x,), ""), model, budget, total, 1, ())
        assert groups.rest >= 0
        kept = torch.ones(groups.count, dtype=torch.bool)
        assert groups.cost(kept) == total
        for family in groups.families:
            kept[family.groups[: len(family.groups) // 3]] = False
        smaller, problem = structured.smaller_of(model, groups, kept, (x,))
        assert problem is None
        assert cost_of(smaller, (x,), budget) == groups.cost(kept)
