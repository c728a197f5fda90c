"""shrink(): what it must leave alone, what it says about it, and that a wrong rule is caught."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.parametrizations import weight_norm

from gossamer.errors import DTypeError, GossamerError
from gossamer.nn import SparseLinear
from gossamer.pruning import functions, layers, prune, shrink
from gossamer.pruning.following import BRANCHED
from gossamer.pruning.trace import trace

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """first -> forward given as a function -> last; half of `first` is zero."""

    def __init__(
        self,
        middle: Callable[..., Tensor],
        *,
        conv: bool = False,
        bias: float = 0.0,
        width: int = 8,
        **parts: nn.Module,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1) if conv else nn.Linear(6, 8)
        for name, part in parts.items():
            self.add_module(name, part)
        self.last = nn.Linear(width, 2)
        self.middle = middle
        with torch.no_grad():
            self.first.weight[::2] = 0
            self.first.bias[::2] = bias

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self, self.first(x)))


def example(net: Net) -> Tensor:
    return torch.randn(2, 3, 4, 4) if isinstance(net.first, nn.Conv2d) else torch.randn(4, 6)


def shrunk(net: Net) -> tuple[nn.Module, list[str]]:
    """The smaller network, checked on other inputs of another batch size, and the notes."""
    smaller, report = shrink(net, example(net), report=True)
    for seed in range(3):
        torch.manual_seed(seed)
        x = example(net)[:-1] if seed == 2 else example(net)
        torch.testing.assert_close(smaller(x), net(x), rtol=0, atol=1e-5)
    return smaller, list(report.notes)


def picks(self: Net, x: Tensor) -> Tensor:
    return x[:, [0, 1, 2, 3, 4, 5, 6, 7]]


BARRIERS: dict[str, tuple[Net, str]] = {
    "LayerNorm": (Net(lambda n, x: n.norm(x), norm=nn.LayerNorm(8)), "norm: a LayerNorm"),
    "softmax": (Net(lambda n, x: x.softmax(1)), "no rule for softmax"),
    "GroupNorm": (Net(lambda n, x: n.norm(x), norm=nn.GroupNorm(2, 8)), "norm: a GroupNorm"),
    "grouped": (
        Net(lambda n, x: n.mix(x).mean((2, 3)), conv=True, mix=nn.Conv2d(8, 8, 3, groups=2)),
        "",  # no group is zero
    ),
    "unequal": (Net(lambda n, x: torch.cat(x.split([2, 6], 1), 1)), "unequal parts"),
    "fixed parts": (Net(lambda n, x: torch.cat(x.split(4, 1), 1)), "a split with a fixed number"),
    "dot products": (Net(lambda n, x: (x @ x.T) @ torch.ones(len(x), 8)), "sums over its features"),
    "picked": (Net(picks), "no rule for getitem"),
    "halves": (Net(lambda n, x: torch.cat([x[:, :4], x[:, 4:]], 1)), "some are picked"),
    "fixed view": (Net(lambda n, x: x.view(-1, 8)), "fixed number of features"),
    "fixed flat": (
        Net(lambda n, x: x.reshape(-1, 8 * 16), conv=True, width=128),
        "fixed number of features",
    ),
    "counted": (Net(lambda n, x: x / x.shape[1]), "number of channels"),
    "own parameter": (
        Net(lambda n, x: x * n.get_parameter("scale.weight")[0], scale=nn.Linear(8, 1)),
        "",
    ),
    "SparseLinear": (
        Net(lambda n, x: n.sparse(x), sparse=SparseLinear(8, 8, pattern="2:4")),
        "sparse: a SparseLinear",
    ),
    "mean of features": (Net(lambda n, x: x.mean(1, keepdim=True) + x), "mixed with places"),
    "dropout": (Net(lambda n, x: F.dropout(x, 0.0)), "a dropout that is on in evaluation"),
    "unnormed": (
        Net(lambda n, x: n.norm(x), norm=nn.BatchNorm1d(8, track_running_stats=False)),
        "without running statistics",
    ),
}


@pytest.mark.parametrize("name", BARRIERS)
def test_barriers_keep_their_features_and_are_named(name: str) -> None:
    net, note = BARRIERS[name]
    net.eval()
    smaller, notes = shrunk(net)
    assert smaller.first.weight.shape == net.first.weight.shape
    if note:
        assert any(note in line for line in notes), notes


FOLLOWED: dict[str, tuple[Net, int]] = {
    "view": (Net(lambda n, x: x.view(x.size(0), -1), conv=True, width=128), 4),
    "flatten": (Net(lambda n, x: torch.flatten(F.relu(x), 1), conv=True, width=128), 4),
    "own sizes": (Net(lambda n, x: x.view(x.shape[0], x.shape[1], -1).mean(-1), conv=True), 4),
    "last": (Net(lambda n, x: x.permute(0, 2, 3, 1).mean((1, 2)), conv=True), 4),
    "item": (Net(lambda n, x: x[:, :, 0, None, 1].squeeze(2), conv=True), 4),
    "in place": (Net(lambda n, x: n.relu(x).add_(1.0), relu=nn.ReLU(True), bias=-3.0), 4),
    "constant": (Net(lambda n, x: 2.0 - torch.sigmoid(x) / 3, bias=0.7), 4),
    "scalars of shape": (Net(lambda n, x: x * x.shape[0], bias=0.0), 4),
    "product": (Net(lambda n, x: x * n.gate(x), gate=nn.Linear(8, 8)), 4),
    "subclass": (Net(lambda n, x: n.prelu(x), prelu=nn.PReLU()), 4),
    "chunks": (Net(lambda n, x: torch.cat(x.chunk(2, 1), 1)), 4),
    "gated": (Net(lambda n, x: torch.mul(*x.chunk(2, 1)), width=4), 4),
    "type": (Net(lambda n, x: x + 1 if isinstance(x, Tensor) else x.item()), 4),
    "groups": (
        Net(lambda n, x: n.mix(x).mean((2, 3)), conv=True, mix=nn.Conv2d(8, 8, 3, groups=4)),
        8,
    ),
    "half dead": (Net(lambda n, x: x - n.other(x), other=nn.Linear(8, 8)), 8),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_followed(name: str) -> None:
    net, kept = FOLLOWED[name]
    smaller, _ = shrunk(net)
    assert len(smaller.first.weight) == kept


def aliased(self: Net, x: Tensor) -> Tensor:
    flat = x.flatten(1)
    F.relu_(x)  # flat changes as well
    return flat + 0.0


def overwritten(self: Net, x: Tensor) -> Tensor:
    F.relu_(x)
    return x


def unknown_in_place(self: Net, x: Tensor) -> Tensor:
    x.mul_(torch.arange(8.0))
    return x


@pytest.mark.parametrize(
    ("middle", "conv", "kept"),
    [(aliased, True, 8), (overwritten, False, 4), (unknown_in_place, False, 8)],
)
def test_what_is_overwritten(middle: Callable[..., Tensor], conv: bool, kept: int) -> None:
    """The constant -3 must not reach the last layer: it is 0 by then, or unknown."""
    net = Net(middle, conv=conv, bias=-3.0, width=128 if conv else 8)
    smaller, _ = shrunk(net)
    assert len(smaller.first.weight) == kept


def twice(self: Net, x: Tensor) -> Tensor:
    return self.again(torch.relu(self.again(x)))


def test_shared_modules_and_weights_stay() -> None:
    net = Net(twice, again=nn.Linear(8, 8))
    with torch.no_grad():
        net.again.weight[:3] = 0
    smaller, notes = shrunk(net)
    assert smaller.again.weight.shape == (8, 8)
    assert notes == ["again: it is called more than once"]

    tied = Net(
        lambda n, x: n.right(torch.relu(n.left(x))), left=nn.Linear(8, 8), right=nn.Linear(8, 8)
    )
    tied.right.weight = tied.left.weight
    smaller, notes = shrunk(tied)
    assert smaller.right.weight is smaller.left.weight
    assert notes == ["left: it shares a weight with another module"]

    read = Net(lambda n, x: F.linear(n.inner(x), n.inner.weight), inner=nn.Linear(8, 8))
    smaller, notes = shrunk(read)
    assert notes == ["inner: its weight is read outside the module"]


class Data(nn.Module):
    """A path that depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > -1e9 else x


def test_what_depends_on_data_is_named_and_left_alone() -> None:
    net = Net(lambda n, x: n.follow(n.data(x)), data=Data(), follow=nn.Linear(8, 8))
    with torch.no_grad():
        net.data.inner.weight[:4] = 0
        net.follow.weight[:4] = 0
    smaller, notes = shrunk(net)
    assert smaller.data.inner.weight.shape == (8, 8)
    assert smaller.first.out_features == 8
    assert smaller.follow.out_features == 4
    (note,) = notes
    assert note == "data: it depends on values of the data (bool)"

    outer = Net(lambda n, x: x * float(x.sum() > 0))
    smaller, report = shrink(outer, torch.randn(2, 6), report=True)
    assert smaller.first.out_features == 8
    assert report.notes == ("the forward of the model: it depends on values of the data (float)",)


def test_a_branch_on_the_inputs_is_followed_and_named() -> None:
    class Branching(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if bool((x * 2).isfinite().all()) else torch.zeros_like(x))

    smaller, notes = shrunk(Branching(lambda n, x: torch.relu(x)))
    assert smaller.first.out_features == 4
    assert notes == [f"the forward of the model: {BRANCHED}"]
    _, report = prune(smaller, torch.randn(2, 6), 0.9, report=True)
    assert report.notes[-1] == f"the model: {BRANCHED}"


def test_hooks_and_parametrizations_stay() -> None:
    net = Net(lambda n, x: n.normed(n.hooked(x)), hooked=nn.Linear(8, 8), normed=nn.Linear(8, 8))
    torch_prune.ln_structured(net.hooked, "weight", 0.5, 2, 0)
    weight_norm(net.normed)
    smaller, notes = shrunk(net)
    assert smaller.hooked.weight.shape == (8, 8)
    assert any(note.startswith("hooked: it has hooks") for note in notes)
    torch_prune.remove(net.hooked, "weight")
    smaller, notes = shrunk(net)
    assert smaller.first.out_features == 4
    assert len(smaller.hooked.weight) == 8  # a parametrized layer reads it
    assert any(note.startswith("normed: no rule for Parametrized") for note in notes)


def test_inputs_and_outputs_keep_their_shapes() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight[:, :2] = 0
        model[2].weight[1:] = 0
        model[2].bias[1:] = 0
    smaller = shrink(model, torch.zeros(2, 4))
    assert smaller[0].in_features == 4
    assert smaller[2].out_features == 3


class Outputs(nn.Module):
    """Several inputs with a default and a flag; a dict with a tuple comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 5)

    def forward(
        self, x: Tensor, y: Tensor, double: bool = False, mask: Tensor | None = None
    ) -> dict[str, Any]:
        h = torch.relu(self.a(x) + y if double else self.a(x) * 0.5)
        if mask is not None:
            h = h * mask
        return {"out": (self.b(h), self.c(h)), "count": y}


@pytest.mark.parametrize(("flag", "kept"), [(True, 8), (False, 6)])
def test_arguments_and_outputs_of_any_kind(flag: bool, kept: int) -> None:
    model = Outputs()
    with torch.no_grad():
        model.a.weight[:2] = 0
    x, y = torch.randn(3, 4), torch.randn(3, 8)
    smaller = shrink(model, (x, y, flag))
    assert smaller.a.out_features == kept
    for found, expected in zip(smaller(x, y, flag)["out"], model(x, y, flag)["out"], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_training_modes_and_frozen_parameters_survive() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    model[1].eval()
    model[3].requires_grad_(False)
    with torch.no_grad():
        model[0].weight[:2] = 0
    statistics = model[1].running_mean.clone()
    state = torch.random.get_rng_state()
    smaller = shrink(model, torch.randn(5, 4, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [m.training for m in smaller] == [True, False, True, True]
    assert [p.requires_grad for p in smaller.parameters()] == [True] * 4 + [False] * 2
    assert torch.equal(model[1].running_mean, statistics)
    assert smaller[1].running_mean.shape == (4,)
    assert int(smaller[1].num_batches_tracked) == 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.1)])
def test_other_dtypes(dtype: torch.dtype, tolerance: float) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 3)).to(dtype)
    with torch.no_grad():
        model[0].weight[::2] = 0
    x = torch.randn(5, 4, dtype=dtype)
    smaller = shrink(model, x)
    assert {p.dtype for p in smaller.parameters()} == {dtype}
    assert smaller[0].out_features == 4
    torch.testing.assert_close(smaller(x), model(x), rtol=0, atol=tolerance)


def test_no_module() -> None:
    with pytest.raises(DTypeError, match="shrink got model=a list; a Module is needed"):
        shrink([nn.Linear(2, 2)], torch.ones(2))  # type: ignore[call-overload]


def constant_model() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 2, 3, padding=1))
    with torch.no_grad():
        model[0].weight[:2] = 0
    return model


def summed_model() -> nn.Module:
    return Net(lambda n, x: x + n.other(x), other=nn.Linear(8, 8))


WRONG: dict[str, tuple[Any, str, Any, Callable[[], nn.Module], tuple[int, ...]]] = {
    "zero padding does not matter": (
        *(layers, "_pads_with_zeros", lambda module: False),
        *(constant_model, (1, 1, 5, 5)),
    ),
    "activations keep zero": (
        *(layers, "elementwise", lambda module, constant: constant),
        *(lambda: Net(lambda n, x: n.act(x), act=nn.Sigmoid()), (2, 6)),
    ),
    "one zero branch is enough": (
        *(functions.operator, "add", None),
        *(summed_model, (2, 6)),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rule is trusted: the result is compared, on random input even if the example is zero."""
    module, attribute, wrong, make, shape = WRONG[name]
    if wrong is None:
        monkeypatch.setitem(
            functions._ARITHMETIC, "add", lambda a, b: torch.where((a == 0) | (b == 0), 0.0, a + b)
        )
    else:
        monkeypatch.setattr(module, attribute, wrong)
    model = make()
    with pytest.raises(GossamerError, match=re.escape("the smaller model differs from the model")):
        shrink(model, torch.zeros(shape))
    monkeypatch.undo()
    shrink(model, torch.zeros(shape))


def test_the_trace_has_the_values_of_the_model() -> None:
    net = Net(lambda n, x: x.view(x.shape[0], -1), conv=True, width=128).eval()
    x = example(net)
    expected = net(x)
    traced = trace(net, (x,))
    assert torch.equal(traced.values[traced.output], expected)
    assert [node.name for node in traced.nodes] == ["Conv2d", "view", "Linear"]
