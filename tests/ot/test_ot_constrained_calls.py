"""Sparsity-constrained transport as it is called: libraries, dtypes, strides, mistakes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gossamer.errors import DeviceError, DTypeError, GossamerError, ProblemError, ShapeError
from gossamer.ot.constrained import METHODS, sparsity_constrained
from support.ot_problems import problem


def test_torch_and_numpy_in_both_precisions_agree() -> None:
    cost, a, b = problem(20, 15)
    cost = cost.float().double()  # so that both precisions hold the same numbers
    want = sparsity_constrained(cost, a, b, k=9, gamma=0.2)
    for dtype in (torch.float32, torch.float64):
        got = sparsity_constrained(cost.to(dtype), a, b, k=9, gamma=0.2)
        assert got.plan.dtype == got.value.dtype == got.potentials[0].dtype == dtype
        assert torch.equal(got.columns.mass, want.columns.mass)
        arrays = sparsity_constrained(cost.to(dtype).numpy(), a.numpy(), b.numpy(), k=9, gamma=0.2)
        assert isinstance(arrays.plan, np.ndarray)
        assert isinstance(arrays.value, float)
        np.testing.assert_array_equal(arrays.plan, got.plan.numpy())
    uniform = sparsity_constrained(cost, k=9, gamma=0.2)
    torch.testing.assert_close(uniform.plan.sum(0), torch.full((15,), 1 / 15).double())


@pytest.mark.parametrize("order", ["transposed", "strided", "flipped"])
def test_any_strides_give_the_same(order: str) -> None:
    cost, a, b = problem(20, 15)
    want = sparsity_constrained(cost, a, b, k=9).plan
    if order == "flipped":
        flipped = np.ascontiguousarray(cost.numpy()[::-1, ::-1])[::-1, ::-1]
        np.testing.assert_array_equal(
            sparsity_constrained(flipped, a.numpy(), b.numpy(), k=9).plan, want
        )
        return
    wide = torch.zeros(40, 45, dtype=torch.float64)
    wide[::2, ::3] = cost
    other = cost.T.contiguous().T if order == "transposed" else wide[::2, ::3]
    assert torch.equal(sparsity_constrained(other, a, b, k=9).plan, want)


# ---- gradients -----------------------------------------------------------------------------------
@pytest.mark.parametrize("k", [3, 9])
def test_the_value_has_the_gradient_of_the_envelope(k: int) -> None:
    cost, a, b = problem(9, 7)
    gamma, h = 0.3, 1e-5
    leaves = [x.clone().requires_grad_() for x in (cost, a, b)]
    result = sparsity_constrained(*leaves, k=k, gamma=gamma, tol=1e-13)
    assert result.status == "converged"
    (3.0 * result.value).backward()
    grads = [x.grad for x in leaves]
    torch.testing.assert_close(grads[0], 3.0 * result.plan, rtol=0, atol=1e-14)

    def value(change: Tensor, which: int) -> float:
        given = [cost, a, b]
        given[which] = given[which] + change
        return float(sparsity_constrained(*given, k=k, gamma=gamma, tol=1e-13).value)

    for which in range(3):
        for _ in range(5):
            d = torch.randn_like(leaves[which])
            if which:
                d = d - d.mean()  # masses must stay equal
            slope = (value(h * d, which) - value(-h * d, which)) / (2 * h)
            grad = grads[which]
            assert grad is not None
            assert 3.0 * slope == pytest.approx(float((grad * d).sum()), abs=1e-7)


def test_a_gradient_has_the_dtype_of_its_argument_and_comes_only_where_asked() -> None:
    cost, a, b = problem(6, 5)
    c32 = cost.float().requires_grad_()
    b64 = b.clone().requires_grad_()
    sparsity_constrained(c32, a, b64, k=6).value.backward()
    assert c32.grad is not None
    assert b64.grad is not None
    assert (c32.grad.dtype, b64.grad.dtype) == (torch.float32, torch.float64)
    assert not sparsity_constrained(cost, a, b, k=6).value.requires_grad
    value = sparsity_constrained(c32, a, b, k=6).value
    (slope,) = torch.autograd.grad(value, c32, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        slope.sum().backward()


# ---- bad input -----------------------------------------------------------------------------------
NAN = torch.tensor([[0.0, float("nan")], [1.0, 0.0]])
HALF = torch.tensor([0.5, 0.5])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 0}, ProblemError, "k is 0; an integer of at least 1"),
        ({"k": -3}, ProblemError, "k is -3"),
        ({"k": 1.5}, ProblemError, "k is 1.5"),
        ({"k": True}, ProblemError, "k is True"),
        ({"gamma": 0.0}, ProblemError, "gamma is 0.0; a positive"),
        ({"gamma": float("nan")}, ProblemError, "gamma is nan"),
        ({"gamma": float("inf")}, ProblemError, "gamma is inf"),
        ({"gamma": "1"}, ProblemError, "gamma is '1'"),
        ({"tol": -1e-9}, ProblemError, "tol is -1e-09"),
        ({"max_iter": 0}, ProblemError, "max_iter is 0"),
        ({"method": "admm"}, ProblemError, "method is 'admm'; choose one of newton, lbfgs"),
        ({"M": NAN}, ProblemError, r"M\[0, 1\] is nan"),
        ({"M": NAN.nan_to_num(float("inf"))}, ProblemError, r"M\[0, 1\] is inf"),
        ({"M": torch.zeros(2, 0)}, ShapeError, "M has shape"),
        ({"M": torch.zeros(2)}, ShapeError, "M has shape"),
        ({"M": torch.zeros(3, 2, 2)}, ProblemError, "M has shape .* one cost matrix"),
        ({"M": torch.zeros(2, 2, dtype=torch.int64)}, DTypeError, "M has dtype torch.int64"),
        ({"M": [[0.0, 1.0]]}, DTypeError, "M is a list"),
        ({"M": torch.zeros(2, 2, device="meta")}, DeviceError, "M is on meta"),
        ({"a": torch.tensor([0.5, 0.6])}, ProblemError, "a sums to 1.1.* and b to 1"),
        ({"a": torch.tensor([1.5, -0.5])}, ProblemError, r"a\[1\] is -0.5"),
        ({"b": torch.tensor([float("nan"), 0.5])}, ProblemError, r"b\[0\] is nan"),
        ({"b": torch.tensor([0.5, 0.3, 0.2])}, ShapeError, "b has shape"),
        ({"a": torch.zeros(2), "b": torch.zeros(2)}, ProblemError, "a has no mass"),
    ],
)
def test_a_mistake_is_a_value_error_that_names_it(
    change: dict[str, Any], error: type[GossamerError], message: str
) -> None:
    given: dict[str, Any] = {"M": torch.rand(2, 2), "a": HALF, "b": HALF, "k": 1}
    threads = torch.get_num_threads()
    with pytest.raises(GossamerError, match=message) as caught:
        sparsity_constrained(**(given | change))
    assert type(caught.value) is error
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads


@pytest.mark.filterwarnings("ignore::gossamer.ot.ConvergenceWarning")
def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    cost, a, b = problem(12, 9)
    for method in METHODS:
        for k in (2, 12):
            sparsity_constrained(cost, a, b, k=k, method=method)
    assert tuple(capfd.readouterr()) == ("", "")
