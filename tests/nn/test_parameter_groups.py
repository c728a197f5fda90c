"""parameter_groups, and the warning about sparse values without weight decay."""

import copy
import warnings

import pytest
import torch
from torch import nn

import gossamer
from gossamer import SparseLinear, parameter_groups
from gossamer.nn import AdaptedLinear, MaskedLinear
from gossamer.nn.layers.threshold import ThresholdLinear


def by_dim(model: nn.Module, decay: float) -> list[dict[str, object]]:
    """The groups of code that knows nothing of sparse weights."""
    return [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]


def network() -> nn.Sequential:
    adapted = AdaptedLinear(16, 16, pattern="2:4")
    adapted.insert(rank=2)
    return nn.Sequential(
        SparseLinear(8, 16, pattern="2:4"),
        nn.LayerNorm(16),
        nn.Linear(16, 16),
        MaskedLinear.from_dense(nn.Linear(16, 16), "2:4"),
        ThresholdLinear.from_dense(nn.Linear(16, 16), "75%"),
        adapted,
        nn.Sequential(nn.BatchNorm1d(16), nn.PReLU()),
        nn.Embedding(4, 8),
    )


def step(optimizer: torch.optim.Optimizer) -> list[str]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step()
    return [str(warning.message) for warning in caught]


def test_matrices_and_sparse_values_decay() -> None:
    model = network()
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, rest = parameter_groups(model, weight_decay=0.1)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert [names[id(p)] for p in decayed["params"]] == [
        "0.weight.values", "2.weight", "3.weight", "4.weight", "5.weight.values",
        "5.adapter.left", "5.adapter.right", "7.weight",
    ]  # fmt: skip
    everything = [id(p) for group in (decayed, rest) for p in group["params"]]
    assert sorted(everything) == sorted(map(id, model.parameters()))
    decayed, _ = parameter_groups(model, 0.1, undecayed=(nn.Embedding,))
    assert "7.weight" not in [names[id(p)] for p in decayed["params"]]
    assert gossamer.nn.parameter_groups is parameter_groups


def test_shared_parameters_stand_once_and_empty_groups_are_left_out() -> None:
    first = SparseLinear(8, 8, bias=False, pattern="2:4")
    model = nn.Sequential(first, SparseLinear.of_parts(first.weight, None))
    (group,) = parameter_groups(model, 0.1)
    assert group["params"] == [first.weight.values]


@pytest.mark.parametrize("way", ["made", "copied", "assigned"])
def test_values_without_decay_beside_a_group_with_it_are_warned_of_once(way: str) -> None:
    model = nn.Sequential(SparseLinear(8, 16, pattern="2:4"), nn.Linear(16, 4))
    if way == "copied":
        model = copy.deepcopy(model)
    elif way == "assigned":
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
    optimizer = torch.optim.AdamW(by_dim(model, 0.1))
    (message,) = step(optimizer)
    assert "gossamer.parameter_groups" in message
    assert step(optimizer) == []


def test_no_warning_where_decay_is_right_or_absent() -> None:
    model = nn.Sequential(SparseLinear(8, 16, pattern="2:4"), nn.Linear(16, 4))
    for groups in (
        parameter_groups(model, 0.1),
        by_dim(model, 0.0),
        model.parameters(),
        by_dim(nn.Sequential(nn.Linear(4, 4)), 0.1),
    ):
        assert step(torch.optim.SGD(groups, lr=0.1)) == []
    assert step(torch.optim.AdamW(model.parameters())) == []
