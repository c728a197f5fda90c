"""SynFlow against a plain oracle, and rankings across rows and layers."""

import copy
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import ArgumentError
from gossamer.pruning import by_row, drawn, global_shares, synflow

pytestmark = pytest.mark.filterwarnings("ignore:.*outputs that read nothing")


def lenet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(32, 20), nn.ReLU(),
        nn.Linear(20, 10),
    )  # fmt: skip


X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LAYERS = ("0", "4", "7", "9")


def oracle(model: nn.Module, sparsity: float, rounds: int) -> dict[str, Tensor]:
    """Algorithm 1, written plainly: scores of the last round at the entries that remain."""
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    weights = {name: model.get_submodule(name).weight for name in LAYERS}
    alive = {name: torch.ones_like(w) for name, w in weights.items()}
    total = sum(w.numel() for w in weights.values())
    for number in range(rounds):
        model.zero_grad()
        model(torch.ones(1, 1, 8, 8).double()).sum().backward()
        scores = {name: (w * w.grad).detach().abs() for name, w in weights.items()}
        flat = torch.cat([scores[name][alive[name] > 0] for name in LAYERS])
        kept = round(total * (1 - sparsity) ** ((number + 1) / rounds))
        least = flat.sort(descending=True).values[kept - 1]
        for name, w in weights.items():
            alive[name] *= scores[name] >= least
            w.data *= alive[name]
    return {name: scores[name] * alive[name] for name in LAYERS}


@pytest.mark.parametrize(("sparsity", "rounds"), [(0.5, 1), (0.9, 20)])
def test_it_is_the_algorithm(sparsity: float, rounds: int) -> None:
    model = lenet().train()
    before = copy.deepcopy(model.state_dict())
    found = synflow(model, X, sparsity, rounds)
    expected = oracle(model, sparsity, rounds)
    total = sum(score.numel() for score in expected.values())
    assert sum(int((s > 0).sum()) for s in found.values()) == round(total * (1 - sparsity))
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score, rtol=1e-9, atol=0)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(module.training for module in model.modules())


def test_every_layer_has_the_same_sum() -> None:
    """Without biases the flow is conserved: what the rounds rest on."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 4, bias=False)]
    scores = synflow(nn.Sequential(*layers), torch.zeros(1, 6), 0.0, 1)
    torch.testing.assert_close(scores["0"].sum(), scores["2"].sum(), rtol=1e-12, atol=0)


def test_rounds_keep_every_layer_where_one_round_loses_one() -> None:
    torch.manual_seed(0)
    widths = (4, 256, 256, 4)
    model = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(widths)))
    many, once = (synflow(model, torch.zeros(1, 4), 0.999, n) for n in (100, 1))
    assert all(int((score > 0).sum()) > 0 for score in many.values())
    assert any(int((score > 0).sum()) == 0 for score in once.values())
    shares = global_shares(once, 0.999, floor=0.5)
    assert all(p.count(*once[n].shape) >= 0.0005 * once[n].numel() - 1 for n, p in shares.items())


def test_trained_statistics_leave_the_flow_positive() -> None:
    model = lenet()
    model[1].running_mean.fill_(100.0)  # subtracted, it would leave nothing above 0
    scores = synflow(model, X, 0.0, 1)
    assert all(bool((score > 0).any()) for score in scores.values())


def test_the_masks_are_those_of_the_scores() -> None:
    model = lenet()
    scores = synflow(model, X, 0.95, 30)
    sparse = gossamer.sparsify(
        copy.deepcopy(model), "95%", score=scores, overrides=global_shares(scores, 0.95)
    )
    for name in LAYERS:
        dense = gossamer.densify(copy.deepcopy(sparse)).get_submodule(name).weight
        assert torch.equal(dense != 0, scores[name] > 0), name


def test_a_drawn_choice_keeps_as_many() -> None:
    random = torch.Generator().manual_seed(0)
    choose = partial(drawn, generator=random)
    model = lenet()
    found, ranked = synflow(model, X, 0.9, 10, choose), synflow(model, X, 0.9, 10)
    counts = [sum(int((s > 0).sum()) for s in given.values()) for given in (found, ranked)]
    assert counts[0] == counts[1]
    assert any(not torch.equal(found[name] > 0, ranked[name] > 0) for name in LAYERS)


def test_by_row_keeps_as_many_in_each_row() -> None:
    scores = {"0": torch.rand(8, 16) * torch.arange(1.0, 9.0)[:, None], "1": torch.rand(4, 2, 3, 3)}
    found = by_row(scores)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8))
    kept = gossamer.sparsify(model, "75%", score=found)[0].mask()
    assert kept.sum(1).tolist() == [4] * 8
    expected = scores["0"].argsort(1, descending=True)[:, :4].sort(1).values
    assert torch.equal(kept.nonzero()[:, 1].view(8, 4), expected)
    assert found["1"].shape == (4, 2, 3, 3)
    assert bool((found["1"] > 0).all())


def test_global_shares_follow_all_scores_together() -> None:
    scores = {"a": torch.rand(8, 8), "b": 0.5 * torch.rand(16, 4)}
    shares = global_shares(scores, 0.75)
    bar = torch.cat([s.flatten() for s in scores.values()]).topk(32).values[-1]
    for name, score in scores.items():
        assert shares[name].count(*score.shape) == int((score >= bar).sum())
    safe = global_shares({"a": torch.ones(8, 8), "b": torch.zeros(16, 4)}, 0.75, floor=0.5)
    assert safe["b"].count(16, 4) == 8
    assert safe["a"].count(8, 8) == 24


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: synflow(nn.ReLU(), X, 0.5), "no linear layer"),
        (lambda: synflow(lenet(), X.long(), 0.5), "real numbers"),
        (lambda: synflow(lenet(), X[:, :, :4], 0.5), r"inputs of \[1, 1, 4, 8\]"),
        (lambda: synflow(nn.Sequential(*[nn.Linear(64, 64)] * 1), X, 1.5), "sparsity"),
        (lambda: by_row({"0": torch.ones(3)}), "rows"),
        (lambda: by_row({}), "no scores"),
        (lambda: global_shares({"0": torch.ones(2, 2, dtype=torch.int64)}, 0.5), "no real"),
        (lambda: global_shares({"0": torch.ones(2, 2)}, -1.0), "sparsity"),
    ],
)
def test_bad_input_has_one_clear_error(call: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        call()


def test_an_overflow_is_told() -> None:
    torch.manual_seed(0)
    deep = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(12)))
    with torch.no_grad():
        for parameter in deep.parameters():
            parameter.mul_(1e30)
    with pytest.raises(ArgumentError, match="overflow"):
        synflow(deep, torch.zeros(1, 64), 0.5, 1)
