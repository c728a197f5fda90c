"""Penalties: in place, schedules, sparse weights, autograd and diagnostics."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from gossamer.errors import GossamerError, ShapeError
from gossamer.prox import (
    L0,
    L1,
    MCP,
    SCAD,
    SLOPE,
    WGSEF,
    Box,
    CappedL1,
    ElasticNet,
    Huber,
    L1Ball,
    L1MinusL2,
    L2Ball,
    LogSum,
    Lp,
    NuclearNorm,
    Penalty,
    PenaltyError,
    Simplex,
    SparseGroupLasso,
    TopK,
    TotalVariation,
    TransformedL1,
    parse_penalty,
)
from gossamer.schedules import Linear
from gossamer.weight import SparseWeight
from support.prox_penalty_cases import GROUPED, ONE_OF_EACH, name, normal

# In place.


@pytest.mark.parametrize("penalty", ONE_OF_EACH + GROUPED, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_place_out_of_place_torch_and_numpy_agree(penalty: Penalty, dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, dtype=dtype)
    before = x.clone()
    z = penalty.prox(x, 0.5)
    assert torch.equal(x, before)
    assert z.dtype == dtype
    assert torch.equal(torch.from_numpy(penalty.prox(x.numpy(), 0.5)), z)
    wide = torch.zeros(4, 6, dtype=dtype)
    view = wide[:, ::2].T
    view.copy_(x)
    assert penalty.prox_(view, 0.5) is view
    assert torch.equal(view, z)
    assert (wide[:, 1::2] == 0).all()
    assert not torch.signbit(z[z == 0]).any()
    in_metric = penalty.prox(x, 0.5) if isinstance(penalty, WGSEF) and penalty.unbiased else z
    constant = penalty.prox_(x.clone(), 1.0, metric=torch.full_like(x, 2.0))
    assert torch.allclose(constant, in_metric, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("penalty", ONE_OF_EACH + GROUPED, ids=name)
def test_a_parameter_is_changed_outside_of_no_grad(penalty: Penalty) -> None:
    weight = torch.nn.Parameter(normal(3, 4))
    expected = penalty.prox(weight.detach())
    loss = (weight**2).sum()
    penalty.prox_(weight)
    assert torch.equal(weight, expected)
    assert weight.is_leaf
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_penalty_is_no_change() -> None:
    x = normal(3, 4)
    for penalty in (
        L1(0.0),
        Lp(0.0, 0.5),
        L0(0.0),
        MCP(0.0, 2.0),
        WGSEF(0.0, 1),
        L1(0.0, groups="input"),
    ):
        assert torch.equal(penalty.prox(x), x)
        assert penalty.value(x) == 0.0
        assert torch.equal(L1(1.0).prox(x, 0.0), x)


@pytest.mark.parametrize("penalty", ONE_OF_EACH + GROUPED, ids=name)
def test_nothing_but_zeros(penalty: Penalty) -> None:
    zero = torch.zeros(3, 4)
    z = penalty.prox(zero)
    if isinstance(penalty, Simplex):
        assert torch.allclose(z, torch.full((3, 4), 2.0 / (3 if penalty.groups == "input" else 12)))
    else:
        assert torch.equal(z, zero)
        assert penalty.value(zero) == penalty.subdiff_distance(zero, zero) == 0.0
        frozen = zero.numpy().copy()
        frozen.flags.writeable = False
        assert penalty.value(frozen) == 0.0


def test_top_k_ties_and_shares() -> None:
    x = torch.tensor([[1.0, 2.0], [-2.0, 2.0]])
    assert TopK(2).prox(x).tolist() == [[0.0, 2.0], [-2.0, 0.0]]
    assert TopK("50%").prox(x).tolist() == [[0.0, 2.0], [-2.0, 0.0]]
    assert TopK(0).prox(x).count_nonzero() == 0
    assert TopK("1%", groups="neuron").prox(x).tolist() == [[0.0, 0.0], [-2.0, 2.0]]
    assert TopK(99).prox(x).tolist() == x.tolist()


def test_wgsef_by_numbers() -> None:
    x = normal(20, 3)
    sizes = x.norm(dim=1)
    # A huge lam: (1 + lam) prox tends to the k largest groups.
    hard = 1e9 * WGSEF(1e9, 4, groups="neuron").prox(x)
    assert torch.allclose(hard, TopK(4, groups="neuron").prox(x), rtol=1e-6)
    # k = m: ridge; k = 1: half the squared group lasso.
    assert torch.allclose(WGSEF(0.5, "100%", groups="neuron").prox(x), x / 1.5, rtol=1e-14)
    assert WGSEF(1.0, 1, groups="neuron").value(x) == pytest.approx(float(sizes.sum() ** 2 / 2))
    assert WGSEF(1.0, 20, groups="neuron").value(x) == pytest.approx(float((x**2).sum() / 2))
    # k-sparse: the unbiased form is 0, and keeps a vector as it is.
    kept = TopK(4, groups="neuron").prox(x)
    unbiased = WGSEF(0.9, 4, groups="neuron", unbiased=True)
    assert unbiased.value(kept) == pytest.approx(0.0, abs=1e-13)
    assert torch.allclose(unbiased.prox(kept), kept, rtol=1e-14)
    # Unsaturated groups: exactly four survive iff lam times the fourth reaches the fifth.
    low, high = sorted(sizes.tolist(), reverse=True)[4:2:-1]
    over = WGSEF(low / high * 1.001, 4, groups="neuron", unbiased=True).prox(x)
    assert torch.allclose(over, kept, rtol=1e-12)
    under = WGSEF(low / high * 0.999, 4, groups="neuron", unbiased=True).prox(x)
    assert int((under.norm(dim=1) > 0).sum()) > 4
    # A share with costs is a share of the cost.
    share = WGSEF(1.0, "50%", c=[3.0, 1.0]).prox(torch.tensor([1.0, 1.0]))
    assert torch.equal(share, WGSEF(1.0, 2.0, c=[3.0, 1.0]).prox(torch.tensor([1.0, 1.0])))
    # k = 0 leaves nothing.
    assert WGSEF(1.0, 0).prox(x).count_nonzero() == 0
    assert WGSEF(1.0, 0).value(x) == math.inf


def test_wgsef_in_a_metric_of_single_entries_is_exact() -> None:
    x, h = normal(6), torch.rand(6).double() + 0.5
    for unbiased in (False, True):
        penalty = WGSEF(0.4, 2, unbiased=unbiased)
        z = penalty.prox_(x.clone(), metric=h)

        def total(y: torch.Tensor, penalty: Penalty = penalty) -> float:
            return float((0.5 * h * (y - x) ** 2).sum()) + penalty.value(y)

        for scale in (1e-1, 1e-2, 1e-3, 1e-4):
            for _ in range(20):
                assert total(z) <= total(z + scale * normal(6)) + 1e-12
                assert total(z) <= total(z + scale * normal(6) * (torch.rand(6) < 0.3)) + 1e-12


def test_unbiased_wgsef_beyond_the_convex_range_keeps_the_largest() -> None:
    x = torch.tensor([3.0, -1.0, 0.0, 2.0, 0.5], dtype=torch.float64)
    penalty = WGSEF(2.0, 2, unbiased=True)
    kept = torch.tensor([3.0, 0.0, 0.0, 2.0, 0.0], dtype=torch.float64)
    assert torch.equal(penalty.prox(x), kept)
    assert torch.equal(penalty.prox(x, step=0.5), kept)
    # In a metric what counts is h x^2; groups that are zero may have any.
    h = torch.tensor([0.1, 1.9, 1e-9, 1.0, 1.0], dtype=torch.float64)
    assert penalty.prox_(x.clone(), metric=h).tolist() == [0.0, -1.0, 0.0, 2.0, 0.0]
    above = torch.tensor([3.0, 4.0, 1e-9, 5.0, 6.0], dtype=torch.float64)
    assert penalty.prox_(x.clone(), metric=above)[2] == 0
    with pytest.raises(PenaltyError, match="one side"):
        penalty.prox_(x.clone(), metric=torch.linspace(1, 3, 5, dtype=torch.float64))


# Schedules, names, copies, sparse weights.


def test_schedules_are_resolved_by_at() -> None:
    penalty = WGSEF(Linear(0, 1, begin_step=0, end_step=4), Linear(8, 2, begin_step=0, end_step=6))
    now = penalty.at(3)
    assert (now.k, now.lam) == (5.0, 0.75)
    assert L1(1.0).at(7) is not None
    both = SparseGroupLasso(0.1, Linear(0, 2, begin_step=0, end_step=4)).at(2)
    assert both.group_lam == 1.0
    for call in (lambda: penalty.prox_(torch.ones(9)), lambda: penalty.value(torch.ones(9))):
        with pytest.raises(PenaltyError, match=r"schedule for lam, k.*call penalty.at"):
            call()
    with pytest.raises(PenaltyError, match="lam=-1"):
        L1(lambda t: -t).at(1)


def test_a_penalty_survives_copies() -> None:
    x = normal(3, 4)
    for penalty in ONE_OF_EACH + GROUPED + [L1(1.0, groups=[[0, 5], [1, 2, 3, 4, *range(6, 12)]])]:
        for again in (copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty))):  # noqa: S301
            assert torch.equal(again.prox(x), penalty.prox(x))


def test_names() -> None:
    assert parse_penalty("Sparse-Group-Lasso", lam=1.0, group_lam=2.0).groups == "neuron"
    assert parse_penalty(L1(0.5)).lam == 0.5
    assert isinstance(parse_penalty(" wgsef ", lam=1e-3, k="25%", p=None), WGSEF)


def test_element_ops() -> None:
    assert MCP(1.0, gamma=3.0).element_op() == ("mcp", (1.0, 3.0), None, False)
    assert Lp(lam=2.0, p=0.5).element_op() == ("lp", (2.0, 0.5), None, False)
    assert Lp(lam=2.0, p=1.0).element_op() == ("l1", (2.0,), None, False)
    assert Box(-1.0).element_op() == ("box", (-1.0, math.inf), None, False)
    weighted = MCP(1.0, gamma=3.0, weights=[2.0], positive=True).element_op()
    assert weighted is not None
    assert weighted.positive
    assert weighted.weights.tolist() == [2.0]
    for penalty in (L0(1.0, groups="layer"), TopK(1), WGSEF(1.0, 1)):
        assert penalty.element_op() is None


@pytest.mark.parametrize("pattern", ["50%", "2:4", "50%:v4", "block 4x4 50%"])
@pytest.mark.parametrize("grouping", ["element", "neuron", "input", "block(4, 2)", "layer"])
def test_on_a_sparse_weight(pattern: str, grouping: str) -> None:
    """The operator on the values is the operator on the matrix: its zeros change no norm."""
    dense = normal(8, 12)
    weight = SparseWeight.from_dense(dense, pattern)
    for penalty in (
        L1(0.4, groups=grouping),
        Lp(0.4, 0.5, groups=grouping),
        TopK(3, groups=grouping),
    ):
        expected = penalty.prox(weight.to_dense().detach())
        values = penalty.on(weight).prox(weight.values.detach())
        moved = copy.deepcopy(weight)
        moved.values.data.copy_(values)
        assert torch.allclose(moved.to_dense(), expected, rtol=1e-12)


def test_weights_follow_a_sparse_weight() -> None:
    dense = torch.cat([normal(4, 8), torch.zeros(2, 8).double(), normal(2, 8)])
    weight = SparseWeight.from_dense(dense, "80%")
    for penalty in (
        L1(0.4, weights=torch.rand(8, 8)),
        L1(0.4, weights=torch.rand(8), groups="neuron"),
        MCP(0.4, gamma=2.0, weights=torch.rand(8, 1), positive=True),
        SparseGroupLasso(0.1, 0.2, weights=torch.rand(8)),
        WGSEF(0.4, 2.5, groups="neuron", d=torch.rand(8) + 0.1, c=torch.rand(8) + 0.1),
    ):
        expected = penalty.prox(weight.to_dense().detach())
        moved = copy.deepcopy(weight)
        penalty.on(weight).prox_(moved.values)
        assert torch.allclose(moved.to_dense(), expected, rtol=1e-12)
    with pytest.raises(ShapeError, match="3 or more axes"):
        L1(0.4, groups="kernel").on(weight)


# Autograd.


@pytest.mark.parametrize("penalty", ONE_OF_EACH + GROUPED, ids=name)
def test_the_derivative(penalty: Penalty) -> None:
    x = (normal(3, 4) * 1.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: penalty.prox(t, 0.7), x, eps=1e-7, atol=1e-5)
    z = penalty.prox(x, 0.7)
    assert torch.equal(z, penalty.prox(x.detach(), 0.7))


def test_the_derivative_passes_on_through_a_model() -> None:
    x = torch.randn(4, 5, requires_grad=True)
    (L1(0.1).prox(x * 2.0) ** 2).sum().backward()
    z = L1(0.1).prox(x.detach() * 2.0)
    assert torch.allclose(x.grad, 4.0 * z)
    with torch.no_grad():
        assert not L1(0.1).prox(x).requires_grad


# Diagnostics.


def test_values_of_constraints() -> None:
    x = torch.tensor([0.5, -0.5, 0.0])
    assert TopK(2).value(x) == L1Ball(1.0).value(x) == Simplex(1.0).value(x.abs()) == 0.0
    assert TopK(1).value(x) == L1Ball(0.9).value(x) == Simplex(1.0).value(x) == math.inf


@pytest.mark.parametrize(
    ("penalty", "rho"),
    [
        (L1(1.0), 0.0),
        (MCP(1.0, gamma=4.0), 0.25),
        (SCAD(1.0, gamma=5.0), 0.25),
        (TransformedL1(2.0, a=2.0), 3.0),
        (LogSum(2.0, eps=2.0), 0.5),
        (WGSEF(0.5, 1, unbiased=True), 0.5),
        (ElasticNet(1.0, rho=0.5), 0.0),
    ],
)
def test_weak_convexity_is_the_least_that_makes_it_convex(penalty: Penalty, rho: float) -> None:
    assert penalty.weak_convexity() == pytest.approx(rho)
    a = np.linspace(0.0, 8.0, 801)
    if isinstance(penalty, WGSEF):
        points = [np.array([1.0 + 1e-3, v]) for v in a / 8]
    else:
        points = [np.array([v]) for v in a]
    g = np.array([penalty.value(p) for p in points])
    step = a[1] - a[0] if not isinstance(penalty, WGSEF) else (a[1] - a[0]) / 8
    second = np.diff(g, 2) / step**2
    assert second.min() >= -rho - 1e-6
    if rho and not isinstance(penalty, WGSEF):
        assert second.min() <= -rho * 0.95


@pytest.mark.parametrize(
    "penalty", [L0(1.0), Lp(1.0, 0.5), CappedL1(1.0, t=1.0), TopK(1), L1MinusL2(1.0)]
)
def test_not_weakly_convex(penalty: Penalty) -> None:
    assert penalty.weak_convexity() == math.inf


@pytest.mark.parametrize("penalty", ONE_OF_EACH + GROUPED, ids=name)
def test_distance_is_zero_at_a_proximal_point_and_grows_away_from_it(penalty: Penalty) -> None:
    for _ in range(10):
        x = normal(3, 4) * 1.5
        z = penalty.prox(x, 0.7)
        grad = (z - x) / 0.7
        assert penalty.subdiff_distance(z, grad) <= 1e-9
        # No other gradient is nearer than by how far it is away: distances are 1-Lipschitz.
        push = normal(3, 4)
        far = penalty.subdiff_distance(z, grad + push)
        assert far <= float(push.norm()) * (1 + 1e-9)
        assert np.isclose(penalty.subdiff_distance(z.numpy(), (grad + push).numpy()), far)
        if isinstance(penalty, L1 | Lp | MCP | WGSEF) and bool((z != 0).any()):
            push = push * (z != 0)
            assert penalty.subdiff_distance(z, grad + push) == pytest.approx(float(push.norm()))


@pytest.mark.parametrize(
    "penalty",
    [
        L1(0.5, groups="neuron"),
        SparseGroupLasso(0.3, 0.4),
        SparseGroupLasso(0.3, 0.4, weights=[1.0, 0.5], positive=True),
        Huber(0.5, delta=0.4, weights=[1.0, 0.5, 0.0]),
        L1(0.5, groups="neuron", positive=True),
        SLOPE(0.5),
        SLOPE(0.5, groups="input"),
        TotalVariation(0.3),
        TotalVariation(0.3, groups="input"),
        NuclearNorm(0.4),
        Box(-0.3, 0.6),
        L2Ball(1.0, groups="neuron"),
        Simplex(2.0, groups="neuron"),
        WGSEF(0.5, 1, groups="neuron"),
        L1Ball(2.0, groups="neuron"),
        L1Ball(2.0),
        Simplex(2.0),
    ],
    ids=name,
)
def test_distance_of_convex_penalties_is_to_the_nearest_subgradient(penalty: Penalty) -> None:
    """-grad is a subgradient at z iff z = prox(z - grad); the nearest one is found by descent."""
    x = normal(2, 3) * 2.0
    z = penalty.prox(x)
    grad = normal(2, 3) * 2.0
    # The projection of -grad on the subdifferential C: y = lim (prox(z + t y') - ...), so here by
    # the alternative formula: distance = lim over t of |z - prox(z - t grad)| / t.
    t = 1e-7
    slope = float((z - penalty.prox(z - t * grad, t)).norm()) / t
    assert penalty.subdiff_distance(z, grad) == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_distance_outside_of_a_set_and_in_bad_shapes() -> None:
    x = torch.tensor([3.0, 4.0])
    for penalty in (TopK(1), L1Ball(1.0), Simplex(1.0), WGSEF(1.0, 0)):
        assert penalty.subdiff_distance(x, x) == math.inf
    with pytest.raises(ShapeError, match="the same"):
        L1(1.0).subdiff_distance(x, torch.ones(3))


def test_errors_are_of_one_family() -> None:
    assert issubclass(PenaltyError, GossamerError)
    assert issubclass(PenaltyError, ValueError)
