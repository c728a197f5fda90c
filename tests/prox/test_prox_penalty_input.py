"""Groupings of a penalty against plain indices, and what penalties refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from gossamer import prox
from gossamer.errors import ArgumentError, DTypeError, ShapeError, StructureError
from gossamer.prox import Penalty, PenaltyError
from gossamer.prox.groupings import partition, resolve, size, spread
from gossamer.prox.reductions import means, norms, sums
from support.prox_penalty_cases import GROUPED, ONE_OF_EACH, name, normal

# Groupings: each against the indices that a person would write.


@pytest.mark.parametrize(
    ("grouping", "shape", "key"),
    [
        ("element", (2, 3), lambda o, i, h, w: (o, i, h, w)),
        ("neuron", (3, 4), lambda o, i, h, w: o),
        ("neuron", (3, 4, 2, 2), lambda o, i, h, w: o),
        ("filter", (3, 4, 2, 2), lambda o, i, h, w: o),
        ("input", (3, 4), lambda o, i, h, w: i),
        ("channel", (3, 4, 2, 5), lambda o, i, h, w: i),
        ("filter_shape", (3, 4, 2, 5), lambda o, i, h, w: (i, h, w)),
        ("kernel", (3, 4, 2, 5), lambda o, i, h, w: (o, i)),
        ("layer", (3, 4, 2, 5), lambda o, i, h, w: 0),
        ("block(2, 3)", (4, 6), lambda o, i, h, w: (o // 2, i // 3)),
        ((1, 4), (4, 2, 2, 2), lambda o, i, h, w: (o, i)),
    ],
)
def test_a_grouping_holds_what_its_name_says(
    grouping: Any, shape: tuple[int, ...], key: Any
) -> None:
    wide = (*shape, 1, 1)[:4] if len(shape) < 4 else shape
    keys = [key(*where) for where in np.ndindex(*wide)]
    order = sorted(set(keys))
    labels = torch.tensor([order.index(k) for k in keys])
    groups = resolve(prox.L1(1.0, groups=grouping).groups, shape)
    assert groups.count == len(order)
    assert torch.equal(spread(torch.arange(groups.count), groups), labels)
    x = normal(*shape)
    squares = torch.zeros(groups.count, dtype=torch.float64)
    squares.index_add_(0, labels, x.reshape(-1) ** 2)
    assert torch.allclose(norms(x, groups) ** 2, squares, rtol=1e-13)
    assert torch.allclose(sums(x.reshape(-1) ** 2, groups), squares, rtol=1e-13)
    assert torch.allclose(means(x.abs() + 1, groups)[labels].mean(), (x.abs() + 1).mean())
    assert size(groups) == x.numel()


def test_a_partition_of_ones_own() -> None:
    x = normal(2, 3)
    by_rows = prox.L1(0.5, groups="neuron").prox(x)
    for own in ([[0, 1, 2], [3, 4, 5]], torch.tensor([[0, 0, 0], [1, 1, 1]]), [0, 0, 0, 1, 1, 1]):
        assert torch.equal(prox.L1(0.5, groups=own).prox(x), by_rows)
    labels = np.array([1, 0, 1, 0, 1, 0])
    z = prox.L0(1e9, groups=labels).prox(x) + prox.TopK(1, groups=partition(labels, 6)).prox(x)
    assert (z.view(-1)[::2] == 0).all() != (z.view(-1)[1::2] == 0).all()


@pytest.mark.parametrize(
    ("grouping", "shape", "error", "text"),
    [
        ("filter", (5,), ShapeError, "3 or more axes, got shape .5,.; element, layer fit"),
        ("neuron", (5,), ShapeError, "2 or more axes"),
        ("kernel", (5, 5), ShapeError, "element, layer, neuron, input fit"),
        ("block(2, 3)", (4, 4), ShapeError, "whole blocks"),
        ("block(2, 3)", (6,), ShapeError, "whole blocks"),
        ([[0, 1], [2]], (2, 2), ShapeError, "covers 3 entries"),
    ],
)
def test_a_grouping_that_does_not_fit(
    grouping: Any, shape: tuple[int, ...], error: type[Exception], text: str
) -> None:
    x = normal(*shape)
    before = x.clone()
    with pytest.raises(error, match=text):
        prox.L1(1.0, groups=grouping).prox_(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("grouping", "error"),
    [
        ("rows", PenaltyError),
        ("block(0, 3)", PenaltyError),
        (3, PenaltyError),
        ([[0, 1], [1, 2]], StructureError),
        ([[0, 1], [3]], StructureError),
        (np.array([0, -1]), StructureError),
        (np.array([0.5, 1.0]), DTypeError),
    ],
)
def test_groupings_that_are_none(grouping: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        prox.L1(1.0, groups=grouping)


# Parameters.


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: prox.L1(-1.0), "lam=-1.0; it must be finite and >= 0"),
        (lambda: prox.L1(math.nan), "lam=nan"),
        (lambda: prox.L0(math.inf), "lam=inf"),
        (lambda: prox.L1(1.0, weights=[1.0, -1.0]), "weights=-1.0"),
        (lambda: prox.L1(1.0, weights=[1.0, math.nan]), "weights=nan"),
        (lambda: prox.MCP(1.0, 2.0, weights=-1.0), "weights=-1.0"),
        (lambda: prox.Huber(1.0, delta=0.0), "delta=0.0"),
        (lambda: prox.Box(math.nan), "low=nan"),
        (lambda: prox.Box(1.0, -1.0), "swap them"),
        (lambda: prox.Box(groups="neuron"), "as a whole"),
        (lambda: prox.L2Ball(0.0), "radius=0.0"),
        (lambda: prox.Lp(lam=1.0, p=0.0), r"p=0.0; it must be finite and in \(0, 1\]"),
        (lambda: prox.Lp(lam=1.0, p=1.5), "p=1.5"),
        (lambda: prox.ElasticNet(1.0, rho=1.5), "rho=1.5"),
        (lambda: prox.MCP(1.0, gamma=0.0), "gamma=0.0"),
        (lambda: prox.SCAD(1.0, gamma=2.0), "gamma=2.0"),
        (lambda: prox.CappedL1(1.0, t=0.0), "t=0.0"),
        (lambda: prox.TransformedL1(1.0, a=0.0), "a=0.0"),
        (lambda: prox.LogSum(1.0, eps=-1.0), "eps=-1.0"),
        (lambda: prox.L1MinusL2(1.0, alpha=2.0), "alpha=2.0"),
        (lambda: prox.L1MinusL2(1.0, groups="neuron"), "as a whole"),
        (lambda: prox.SparseGroupLasso(1.0, group_lam=-1.0), "group_lam=-1.0"),
        (lambda: prox.WGSEF(1.0, -1), "k=-1.0"),
        (lambda: prox.WGSEF(1.0, math.inf), "k=inf"),
        (lambda: prox.WGSEF(1.0, "25"), "a share"),
        (lambda: prox.WGSEF(1.0, "125%"), "a share"),
        (lambda: prox.WGSEF(1.0, 1, d=[1.0, 0.0]), "d=0.0"),
        (lambda: prox.WGSEF(1.0, 1, d=[1.0], unbiased=True), "drop d"),
        (lambda: prox.TopK(math.nan), "k=nan"),
        (lambda: prox.L1Ball(0.0), "radius=0.0"),
        (lambda: prox.NuclearNorm(1.0, groups="layer"), "matrix of rows"),
        (lambda: prox.SLOPE(1.0, q=1.0), "q=1.0"),
        (lambda: prox.SLOPE(1.0, sequence=[1.0, 2.0]), "sequence that rises"),
        (lambda: prox.TotalVariation(1.0).on(None), "not neighbours"),
        (lambda: prox.L1(1.0).prox_(torch.ones(2), step=-1.0), "step=-1.0"),
        (
            lambda: prox.L1(1.0).prox_(torch.ones(2), metric=torch.tensor([1.0, 0.0])),
            "not positive",
        ),
        (lambda: prox.L1(1.0).prox_(torch.ones(2), metric=torch.tensor([1.0, math.nan])), "metric"),
        (lambda: prox.WGSEF(2.0, 1.5, unbiased=True).prox_(torch.ones(2)), "smaller lam or step"),
        (lambda: prox.parse_penalty("l3"), "choose one of l1, "),
        (lambda: prox.parse_penalty("lp", lam=1.0), "needs p"),
        (lambda: prox.parse_penalty("l1", lam=1.0, gamma=2.0), "does not take gamma"),
    ],
)
def test_a_value_that_no_penalty_has(make: Any, text: str) -> None:
    with pytest.raises(PenaltyError, match=text):
        make()


@pytest.mark.parametrize("wrong", ["1", None, True, [1.0]])
def test_a_parameter_that_is_no_number(wrong: Any) -> None:
    with pytest.raises(DTypeError, match="a number is needed"):
        prox.L1(wrong)


@pytest.mark.parametrize("penalty", ONE_OF_EACH, ids=name)
def test_what_cannot_be_changed_in_place(penalty: Penalty) -> None:
    frozen = np.ones((3, 4))
    frozen.flags.writeable = False
    for wrong, error in [
        (torch.ones(3, 4, dtype=torch.int64), DTypeError),
        (np.ones((3, 4), dtype=np.int32), DTypeError),
        (torch.ones(3, 4, dtype=torch.bfloat16), DTypeError),
        ([1.0] * 12, DTypeError),
        (torch.ones(0, 4), ShapeError),
        (np.ones((0, 4)), ShapeError),
        (frozen, ArgumentError),
        (torch.ones(1, 4).expand(3, 4), ShapeError),
    ]:
        with pytest.raises(error) as raised:
            penalty.prox_(wrong)
        assert raised.type is error
    assert (frozen == 1).all()


@pytest.mark.parametrize("penalty", ONE_OF_EACH + GROUPED, ids=name)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_never_zeroed(penalty: Penalty, bad: float) -> None:
    """Entry by entry it stays; where it would spread, it is an error and nothing changes."""
    x = torch.ones(3, 4)
    x[1, 2] = bad
    before = x.clone()
    if penalty.element_op() is not None or (
        isinstance(penalty, prox.L1) and penalty.groups == "element"
    ):
        z = penalty.prox_(x)
        assert z[1, 2].isnan() if math.isnan(bad) else z[1, 2] == getattr(penalty, "high", bad)
        assert int(z.isfinite().sum()) == 11 + int(z[1, 2].isfinite())
    else:
        with pytest.raises(PenaltyError, match="nothing was changed"):
            penalty.prox_(x)
        assert torch.equal(x.nan_to_num(), before.nan_to_num())
        with pytest.raises(PenaltyError):
            penalty.prox_(x, metric=torch.ones(3, 4))


def test_a_metric_must_look_like_the_entries() -> None:
    x = torch.ones(2, 2)
    for wrong, error in [
        (torch.ones(4), ShapeError),
        (torch.ones(2, 2).double(), DTypeError),
        (np.ones((2, 2)), DTypeError),
    ]:
        with pytest.raises(error, match="metric"):
            prox.L1(1.0).prox_(x, metric=wrong)  # type: ignore[arg-type]
    for penalty, text in [
        (prox.L1(1.0, weights=[1.0, 2.0, 3.0]), r"weights have shape \[3\]"),
        (prox.MCP(1.0, 2.0, weights=torch.ones(2, 2, 2)), r"weights have shape \[2, 2, 2\]"),
        (prox.L0(1.0, weights=[1.0] * 3, groups="neuron"), "3 numbers for 2 groups"),
        (prox.SLOPE(1.0, sequence=[1.0] * 3), "3 numbers for 4 magnitudes"),
        (prox.SparseGroupLasso(1.0, 1.0, weights=[1.0] * 3), "3 numbers for 2 groups"),
        (prox.WGSEF(1.0, 1, c=[1.0, 2.0]), "2 numbers for 4 groups"),
    ]:
        with pytest.raises(ShapeError, match=text):
            penalty.prox_(x)
    assert (x == 1).all()
