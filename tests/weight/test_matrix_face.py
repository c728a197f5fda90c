"""A sparse weight where code expects the weight of an nn.Linear."""

import pytest
import torch
from torch import nn

from gossamer import SparseLinear, SparseWeight
from gossamer.weight.transpose import TransposeRule


@pytest.fixture
def weight() -> SparseWeight:
    return SparseWeight.from_dense(torch.randn(8, 12, dtype=torch.float64), "2:4")


def test_it_answers_like_the_matrix(weight: SparseWeight) -> None:
    dense = weight.to_dense().detach()
    assert (weight.dtype, weight.device) == (dense.dtype, dense.device)
    assert (weight.ndim, weight.dim()) == (dense.ndim, dense.dim())
    assert weight.size() == dense.size() == weight.shape
    assert [weight.size(d) for d in (0, 1, -1)] == [dense.size(d) for d in (0, 1, -1)]
    assert weight.numel() == dense.numel() == 2 * weight.nnz
    assert weight.is_floating_point()


def test_requires_grad_is_that_of_the_values(weight: SparseWeight) -> None:
    assert weight.requires_grad
    weight.requires_grad = False
    assert not weight.values.requires_grad
    assert not weight.requires_grad
    weight.requires_grad_(True)
    assert weight.requires_grad


def test_the_gradient_can_be_dropped_and_nothing_else_is_assigned_in_silence() -> None:
    layer = SparseLinear(12, 8, pattern="2:4")
    layer(torch.randn(2, 12)).sum().backward()
    layer.weight.grad = None
    assert layer.weight.values.grad is None
    for name in ("data", "grad"):
        with pytest.raises(AttributeError, match=rf"weight\.values\.{name}.*from_dense"):
            setattr(layer.weight, name, torch.zeros(8, 12))
        assert not hasattr(layer.weight, name)
    assert "data" not in vars(layer.weight)


def test_the_transpose_is_a_rule_beside_the_weight(weight: SparseWeight) -> None:
    rule = TransposeRule("packed", "exact", weight.layout, weight.pattern)
    built = rule.build(weight.values.detach(), weight.structure)
    assert built is not None
    assert torch.equal(built.perm, weight.transposed.perm)
    assert set(weight.state_dict()) == {"values", "indices", "descriptor"}


INITIALISERS = [
    nn.init.uniform_, nn.init.normal_, nn.init.ones_, nn.init.zeros_,
    nn.init.xavier_uniform_, nn.init.xavier_normal_, nn.init.kaiming_uniform_,
    nn.init.kaiming_normal_,
]  # fmt: skip


@pytest.mark.parametrize("initialise", INITIALISERS, ids=lambda f: f.__name__)
def test_initialisers_act_on_the_values(initialise) -> None:
    weight = SparseWeight.from_dense(torch.randn(256, 128), "2:4")
    mask, parameter = weight.mask(), weight.values
    assert initialise(weight) is weight
    assert weight.values is parameter
    assert torch.equal(weight.mask(), mask)
    dense = initialise(torch.empty(256, 128))
    kept = weight.values.detach()
    torch.testing.assert_close(kept.std(), dense.std(), rtol=0.05, atol=1e-8)
    torch.testing.assert_close(kept.abs().max(), dense.abs().max(), rtol=0.5, atol=1e-8)


@pytest.mark.parametrize("name", ["orthogonal_", "eye_", "dirac_", "sparse_", "trunc_normal_"])
def test_initialisers_that_need_a_tensor_are_refused(name: str, weight: SparseWeight) -> None:
    before = weight.values.detach().clone()
    with pytest.raises(AttributeError, match=r"which this initialiser needs.*from_dense"):
        getattr(nn.init, name)(weight, *([0.1] if name == "sparse_" else []))
    if not (name == "trunc_normal_" and torch.__version__.startswith("2.8.")):  # draws first
        assert torch.equal(weight.values, before)
    with pytest.raises(AttributeError, match="mul_"):
        weight.mul_(torch.ones(8, 12))
