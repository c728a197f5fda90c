"""The share of small weights: right numbers, no influence, and the same after a resume."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import gossamer
from gossamer import ArgumentError
from gossamer.errors import CheckpointError
from gossamer.pruning import SmallWeights
from gossamer.recipes import GMP

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


def test_the_shares_are_those_of_the_weights() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    small = SmallWeights(model, [0.05, 0.2], every=3)
    small.attach(optimizer)
    train(model, optimizer, 7)
    assert [entry["step"] for entry in small.history] == [0, 3, 6]
    train(model, optimizer, 2)
    last = small.history[-1]
    weights = {name: model.get_submodule(name).weight.detach().abs() for name in ("0", "2")}
    every = torch.cat([w.flatten() for w in weights.values()])
    for i, threshold in enumerate((0.05, 0.2)):
        assert last["shares"][i] == pytest.approx(float((every < threshold).double().mean()))
        for name, w in weights.items():
            assert last["layers"][name][i] == pytest.approx(float((w < threshold).double().mean()))
    small.detach()
    train(model, optimizer, 3)
    assert small.history[-1]["step"] == 9
    assert "|w| < 0.05" in str(small)


@pytest.mark.parametrize("sparse", [True, False])
def test_dropped_entries_count_as_small(sparse: bool) -> None:
    model = network()
    if sparse:
        gossamer.sparsify(model, "75%")
    else:
        model = GMP("75%", initial_sparsity=0.75).prepare(model)
    found = SmallWeights(model, [1e-9]).measure()
    assert found["shares"] == [0.75]


def test_a_resume_goes_on_and_nothing_is_changed() -> None:
    def course(cut: int | None, watched: bool = True) -> tuple[list[Any], dict[str, Any]]:
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        small = SmallWeights(model, [0.1], every=2)
        if watched:
            small.attach(optimizer)
        train(model, optimizer, 8 if cut is None else cut)
        if cut is not None:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), small.state_dict()))
            model = network()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            small = SmallWeights(model, [0.1], every=2)
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
            small.load_state_dict(saved[2])
            small.attach(optimizer)
            train(model, optimizer, 8 - cut)
        return small.history, model.state_dict()

    history, weights = course(None)
    for cut in (2, 5):
        assert course(cut)[0] == history
    for key, value in course(None, watched=False)[1].items():
        assert torch.equal(value, weights[key])


def test_bad_input() -> None:
    with pytest.raises(ArgumentError, match="above 0"):
        SmallWeights(network(), [0.0])
    with pytest.raises(ArgumentError, match="no linear layer"):
        SmallWeights(nn.ReLU())
    small = SmallWeights(network(), [0.1])
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    small.attach(optimizer)
    with pytest.raises(ArgumentError, match="already"):
        small.attach(optimizer)
    with pytest.raises(CheckpointError, match="damaged"):
        small.load_state_dict({})
    with pytest.raises(CheckpointError, match="thresholds"):
        small.load_state_dict(SmallWeights(network(), [0.2]).state_dict())
