from dataclasses import replace

import pytest
import torch
from torch import nn

from gossamer.errors import ArgumentError, ShapeError
from gossamer.nn import SparseLinear
from gossamer.train import GPT, GPTConfig
from gossamer.train.groups import parameter_groups

SIZES = GPTConfig(vocabulary=11, context=8, width=16, depth=2, heads=2)


def test_no_position_sees_a_later_one() -> None:
    model = GPT(SIZES).double()
    tokens = torch.randint(11, (3, 8))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-12)
    assert (before[:, 5:] - after[:, 5:]).abs().amax(-1).min() > 1e-6


def test_the_head_is_the_token_embedding() -> None:
    model = GPT(SIZES)
    model(torch.randint(11, (1, 8))).sum().backward()
    assert not [name for name, _ in model.named_parameters() if "head" in name]
    assert model.tokens.weight.grad is not None
    assert (model.tokens.weight.grad.abs().sum(1) > 0).all()  # of tokens not in the input, too


def test_parameters_decay_by_kind_and_not_by_rank() -> None:
    model = GPT(SIZES)
    model.blocks[0].mlp.up = nn.Linear(16, 64)  # with a bias
    model.extra = SparseLinear(16, 16, pattern="2:4")  # its values are a vector
    decaying, rest = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = [id(p) for group in (decaying, rest) for p in group["params"]]  # type: ignore[attr-defined]
    assert sorted(listed) == sorted(names)
    exempt = {names[id(p)] for p in rest["params"]}  # type: ignore[attr-defined]
    assert exempt == {
        name for name in names.values() if "norm" in name or name.endswith("bias")
    } | {"tokens.weight", "positions.weight"}
    assert (decaying["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 15}, "width=15 with heads=2; .* choose 14"),
        ({"depth": 0}, "depth=0; it must be at least 1"),
        ({"context": -1}, "context=-1"),
    ],
)
def test_model_sizes_are_checked(change: dict[str, int], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        replace(SIZES, **change)


def test_too_long_an_input_is_an_error() -> None:
    with pytest.raises(ShapeError, match=r"\[2, 9\].* at most 8"):
        GPT(SIZES)(torch.zeros(2, 9, dtype=torch.long))
