"""gossamer.ot.pot_backend: what POT's users call and get."""

import inspect

import numpy as np
import pytest
import torch

import gossamer.ot as ot
from gossamer.errors import DTypeError, GossamerError, ProblemError, ShapeError
from gossamer.ot import pot_backend as pot
from support import ot_oracle as oracle

A_CASE = oracle.case(6, 9)


def test_names_order_and_defaults_are_pots() -> None:
    """As `inspect.signature` shows them for POT 0.9."""
    wanted = {
        "sinkhorn": "a, b, M, reg, method='sinkhorn', numItermax=1000, stopThr=1e-09, "
        "verbose=False, log=False, warn=True, warmstart=None",
        "sinkhorn2": "a, b, M, reg, method='sinkhorn', numItermax=1000, stopThr=1e-09, "
        "verbose=False, log=False, warn=False, warmstart=None",
        "sinkhorn_unbalanced": "a, b, M, reg, reg_m, method='sinkhorn', reg_type='kl', c=None, "
        "warmstart=None, numItermax=1000, stopThr=1e-06, verbose=False, log=False",
        "sinkhorn_unbalanced2": "a, b, M, reg, reg_m, method='sinkhorn', reg_type='kl', c=None, "
        "warmstart=None, returnCost='linear', numItermax=1000, stopThr=1e-06, verbose=False, "
        "log=False",
    }
    for name, text in wanted.items():
        parameters = inspect.signature(getattr(pot, name)).parameters.values()
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
        assert ", ".join(map(str, bare)) == text


@pytest.mark.parametrize("method", ["sinkhorn", "sinkhorn_log", "sinkhorn_stabilized"])
def test_sinkhorn(method: str) -> None:
    C, a, b = A_CASE
    plan, _, _ = oracle.sinkhorn(C, a, b, 0.05)
    got, log = pot.sinkhorn(a, b, C, 0.05, method=method, stopThr=1e-12, log=True)
    assert np.abs(got - plan).max() < 1e-10
    assert np.abs(log["u"][:, None] * np.exp(-C / 0.05) * log["v"] - plan).max() < 1e-10
    assert log["niter"] == log["n_iter"] > 0
    assert log["err"][-1] <= 1e-12
    cost = pot.sinkhorn2(a, b, C, 0.05, stopThr=1e-12)
    assert float(cost) == pytest.approx((C * plan).sum(), abs=1e-10)


def test_lists_and_empty_weights() -> None:
    C = [[0.0, 1.0], [1.0, 0.0]]
    plan = pot.sinkhorn([], [], C, 1)
    assert np.abs(plan - [[0.36552929, 0.13447071], [0.13447071, 0.36552929]]).max() < 1e-8
    assert float(pot.sinkhorn2([0.5, 0.5], [0.5, 0.5], C, 1)) == pytest.approx(0.26894142)


def test_several_histograms_share_a_cost() -> None:
    C, a, b = A_CASE
    hists = np.stack([b, b[::-1], np.full(9, 1 / 9)], axis=1)
    for torch_or_numpy in (np.asarray, torch.tensor):
        costs = pot.sinkhorn2(*(torch_or_numpy(t) for t in (a, hists, C)), 0.05)
        assert costs.shape == (3,)
        assert isinstance(costs, torch.Tensor) == (torch_or_numpy is torch.tensor)
        for k in range(3):
            assert float(costs[k]) == pytest.approx(float(pot.sinkhorn2(a, hists[:, k], C, 0.05)))
        again = pot.sinkhorn(a, hists, C, 0.05)
        assert np.abs(np.asarray(again) - np.asarray(costs)).max() < 1e-12


def test_unbalanced() -> None:
    C, a, b = A_CASE
    plan, _, _ = oracle.sinkhorn(C, a, 2 * b, 0.05, (0.7, 0.7))
    got = pot.sinkhorn_unbalanced(a, 2 * b, C, 0.05, 0.7, stopThr=1e-12)
    assert np.abs(got - plan).max() < 1e-10
    linear = pot.sinkhorn_unbalanced2(a, 2 * b, C, 0.05, 0.7, stopThr=1e-12)
    assert float(linear) == pytest.approx((C * plan).sum(), abs=1e-10)
    total = pot.sinkhorn_unbalanced2(a, 2 * b, C, 0.05, 0.7, stopThr=1e-12, returnCost="total")
    wanted = oracle.objective(plan, C, a, 2 * b, 0.05, "KL", (0.7, 0.7))
    assert float(total) == pytest.approx(wanted, abs=1e-9)
    entropy = pot.sinkhorn_unbalanced(a, 2 * b, C, 0.05, 0.7, reg_type="entropy", stopThr=1e-12)
    weights = [w ** (0.7 / 0.75) for w in (a, 2 * b)]
    assert np.abs(entropy - oracle.sinkhorn(C, *weights, 0.05, (0.7, 0.7))[0]).max() < 1e-10


def test_warm_start_takes_log_scalings() -> None:
    C, a, b = A_CASE
    _, log = pot.sinkhorn(a, b, C, 0.02, log=True)
    _, again = pot.sinkhorn(a, b, C, 0.02, log=True, warmstart=(log["log_u"], log["log_v"]))
    assert again["niter"] < log["niter"] / 2


def test_warn_and_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    C, a, b = oracle.case(30, 30, kind="random")
    pot.sinkhorn(a, b, C, 1e-3, numItermax=1, warn=False)
    assert capsys.readouterr().out == ""
    with pytest.warns(ot.ConvergenceWarning):
        pot.sinkhorn(a, b, C, 1e-3, numItermax=1, verbose=True)
    assert "max_iter" in capsys.readouterr().out


def test_gradients_pass_through() -> None:
    C, a, b = (torch.tensor(t, requires_grad=True) for t in A_CASE)
    pot.sinkhorn2(a, b, C, 0.1).backward()
    assert all(bool(t.grad.abs().sum() > 0) for t in (C, a, b))


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda C, a, b: pot.sinkhorn(a, b, C, 0.1, method="magic"), ProblemError, "method"),
        (
            lambda C, a, b: pot.sinkhorn_unbalanced(a, b, C, 0.1, 1.0, c=C),
            ProblemError,
            "c was given",
        ),
        (
            lambda C, a, b: pot.sinkhorn_unbalanced(a, b, C, 0.1, 1.0, reg_type="l2"),
            ProblemError,
            "reg_type",
        ),
        (
            lambda C, a, b: pot.sinkhorn_unbalanced2(a, b, C, 0.1, 1.0, returnCost="x"),
            ProblemError,
            "returnCost",
        ),
        (lambda C, a, b: pot.sinkhorn(a, b, C, 0.1, warmstart=3.0), DTypeError, "warmstart"),
        (lambda C, a, b: pot.sinkhorn(a, b[:, None, None], C, 0.1), ShapeError, "b has shape"),
        (lambda C, a, b: pot.sinkhorn(3.0, b, C, 0.1), DTypeError, "a is a float"),
    ],
)
def test_bad_arguments(call: object, error: type[GossamerError], word: str) -> None:
    with pytest.raises(GossamerError, match=word) as caught:
        call(*A_CASE)
    assert type(caught.value) is error
