"""gossamer.ot.pot_backend: how POT's users call it, and the forms of what they get."""

import inspect
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import gossamer.ot as ot
from gossamer.errors import DTypeError, ProblemError
from gossamer.ot import pot_backend as pot
from support import ot_oracle as oracle

A_CASE = oracle.case(6, 9)
SQUARE = oracle.case(7, 7)
SPACES = {"ot": pot, "ot.bregman": pot.bregman, "ot.unbalanced": pot.unbalanced,
          "ot.solvers": pot.solvers}  # fmt: skip


def bare(function: Any) -> str:
    parameters = inspect.signature(function).parameters.values()
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    return ", ".join(map(str, plain))


def test_names_order_and_defaults_are_pots() -> None:
    """As `inspect.signature` shows them for POT 0.9.7."""
    assert bare(pot.solve) == (
        "M, a=None, b=None, reg=None, c=None, reg_type='KL', unbalanced=None, "
        "unbalanced_type='KL', method=None, n_threads=1, max_iter=None, plan_init=None, "
        "potentials_init=None, tol=None, verbose=False, grad='autodiff'"
    )
    assert bare(pot.solve_sample).startswith(
        "X_a, X_b, a=None, b=None, metric='sqeuclidean', reg=None, c=None, reg_type='KL', "
        "unbalanced=None, unbalanced_type='KL', lazy=False, batch_size=None, method=None, "
        "n_threads=1, max_iter=None, plan_init=None, rank=100, scaling=0.95, potentials_init=None"
    )
    assert bare(pot.sinkhorn) == (
        "a, b, M, reg, method='sinkhorn', numItermax=1000, stopThr=1e-09, verbose=False, "
        "log=False, warn=True, warmstart=None, **kwargs"
    )
    assert bare(pot.sinkhorn_unbalanced2) == (
        "a, b, M, reg, reg_m, method='sinkhorn', reg_type='kl', c=None, warmstart=None, "
        "returnCost='linear', numItermax=1000, stopThr=1e-06, verbose=False, log=False, **kwargs"
    )


@pytest.mark.parametrize("space", SPACES)
def test_every_signature_is_that_of_the_installed_pot(space: str) -> None:
    pytest.importorskip("ot.bregman")  # `ot` alone may be a folder of these tests
    theirs = pytest.importorskip(space)
    for name in SPACES[space].__all__:
        if callable(getattr(SPACES[space], name)):
            assert bare(getattr(SPACES[space], name)) == bare(getattr(theirs, name)), name


@pytest.mark.parametrize(
    "method",
    ["sinkhorn", "sinkhorn_log", "Sinkhorn_stabilized", "sinkhorn_epsilon_scaling", "greenkhorn"],
)
def test_every_method_and_its_tuning(method: str) -> None:
    C, a, b = A_CASE
    plan, _, _ = oracle.sinkhorn(C, a, b, 0.05)
    got, log = pot.sinkhorn(
        a, b, C, 0.05, method=method, stopThr=1e-12, log=True, tau=1e3, print_period=5
    )
    assert np.abs(got - plan).max() < 1e-10
    assert np.abs(log["u"][:, None] * np.exp(-C / 0.05) * log["v"] - plan).max() < 1e-10
    assert log["niter"] == log["n_iter"] > 0
    assert len(log["err"]) > 1
    assert log["err"][-1] <= 1e-12
    _, again = pot.sinkhorn(a, b, C, 0.05, method=method, log=True, warmstart=log["warmstart"])
    assert again["niter"] <= 2
    if method in ("greenkhorn", "sinkhorn_epsilon_scaling"):
        with pytest.raises(ProblemError, match="method is"):
            pot.sinkhorn2(a, b, C, 0.05, method=method)


@pytest.mark.parametrize(
    "method",
    ["sinkhorn", "sinkhorn_stabilized", "sinkhorn_reg_scaling", "sinkhorn_translation_invariant"],
)
def test_every_unbalanced_method(method: str) -> None:
    C, a, b = A_CASE
    wanted, _, _ = oracle.sinkhorn(C, a, 2 * b, 0.05, (0.7, 0.7))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        got = pot.sinkhorn_unbalanced(a, 2 * b, C, 0.05, 0.7, method, stopThr=1e-12)
    assert np.abs(got - wanted).max() < 1e-10
    assert [str(w.message)[:27] for w in seen] == (
        ["method sinkhorn_reg_scaling"] if method == "sinkhorn_reg_scaling" else []
    )


def test_costs_and_weights_of_whole_numbers_and_lists() -> None:
    wanted = pot.sinkhorn([], [], [[0.0, 2.0], [1.0, 0.0]], 1)
    whole = [[0, 2], [1, 0]]
    for M in (whole, np.array(whole), torch.tensor(whole)):
        for weights in ([], [1 / 2, 1 / 2]):
            got = pot.sinkhorn(weights, weights, M, 1)
            assert np.abs(np.asarray(got) - wanted).max() < 1e-6
            assert isinstance(got, torch.Tensor) == isinstance(M, torch.Tensor)
    masses = pot.sinkhorn(np.array([1, 2]), np.array([2, 1]), np.array(whole), 1)
    assert masses.sum() == pytest.approx(3)
    found = pot.solve(np.array(whole), np.array([1, 2]), np.array([2, 1]), 1)
    assert np.abs(found.plan - masses).max() < 1e-9


@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
@pytest.mark.parametrize("method", ["sinkhorn", "sinkhorn_log", "sinkhorn_stabilized"])
def test_several_problems_and_their_warm_starts(library: Any, method: str) -> None:
    """As many problems as bins: a transposed start would not be noticed by its shape."""
    C, a, b = SQUARE
    hists = np.stack([np.roll(b, k) for k in range(7)], axis=1)
    args = [library(x) for x in (a, hists, C)]
    costs, log = pot.sinkhorn(*args, 0.05, method=method, log=True)
    assert costs.shape == (7,)
    assert log["u"].shape == log["v"].shape == (7, 7)
    for k in range(7):
        plan, _, _ = oracle.sinkhorn(C, a, hists[:, k], 0.05)
        u, v = (np.asarray(log[name])[:, k] for name in ("u", "v"))
        assert np.abs(u[:, None] * np.exp(-C / 0.05) * v - plan).max() < 1e-8
        assert float(costs[k]) == pytest.approx((plan * C).sum(), abs=1e-8)
    starts = [log["warmstart"], [tuple(x[:, k] for x in log["warmstart"]) for k in range(7)]]
    for start in starts:
        again, second = pot.sinkhorn2(*args, 0.05, method=method, log=True, warmstart=start)
        assert max(second["niter"]) <= 2
        assert np.abs(np.asarray(again) - np.asarray(costs)).max() < 1e-8


@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
@pytest.mark.parametrize("masses", ["given", "uniform", "zero"])
def test_unbalanced_scalings_go_round(reg_type: str, masses: str) -> None:
    C, a, b = A_CASE
    a = (
        []
        if masses == "uniform"
        else np.where(np.arange(6) == 2, 0.0, a)
        if masses == "zero"
        else a
    )
    _, log = pot.sinkhorn_unbalanced(a, 2 * b, C, 0.02, 0.7, reg_type=reg_type, log=True)
    _, again = pot.sinkhorn_unbalanced(
        a, 2 * b, C, 0.02, 0.7, reg_type=reg_type, log=True, warmstart=(log["logu"], log["logv"])
    )
    assert again["niter"] <= 3 < log["niter"]


@pytest.mark.parametrize(
    "reg_m",
    [0.7, [0.7], (0.7,), np.array([0.7]), np.float32(0.7), torch.tensor([0.7]), torch.tensor(0.7),
     (0.7, 0.7), [0.7, 0.7], np.array([0.7, 0.7])],
)  # fmt: skip
def test_penalties_of_one_or_two(reg_m: Any) -> None:
    C, a, b = A_CASE
    wanted = pot.sinkhorn_unbalanced(a, b, C, 0.05, 0.7)
    assert np.abs(pot.sinkhorn_unbalanced(a, b, C, 0.05, reg_m) - wanted).max() < 1e-6
    assert np.abs(pot.solve(C, a, b, 0.05, unbalanced=reg_m).plan - wanted).max() < 1e-5


def test_a_penalty_per_side_and_an_exact_side() -> None:
    C, a, b = A_CASE
    for reg_m in ((0.7, np.inf), [np.inf, 0.3]):
        wanted, _, _ = oracle.sinkhorn(C, a, b, 0.05, tuple(reg_m))
        got = pot.sinkhorn_unbalanced(a, b, C, 0.05, reg_m, stopThr=1e-12)
        assert np.abs(got - wanted).max() < 1e-10


@pytest.mark.parametrize("sweeps", [1, 2, 9])
def test_threshold_zero_takes_pots_sweeps(sweeps: int) -> None:
    """POT scales the columns first, and the rows first if marginals are penalised."""
    for C, a, b in (A_CASE, oracle.case(9, 6)):
        turned, _, _ = oracle.sinkhorn(C.T, b, a, 0.05, tol=0.0, sweeps=sweeps)
        with pytest.warns(UserWarning, match="did not converge"):
            got, log = pot.sinkhorn(a, b, C, 0.05, stopThr=0, numItermax=sweeps, log=True)
        assert log["niter"] == sweeps
        assert np.abs(got - turned.T).max() < 1e-12
        assert np.abs(log["u"][:, None] * np.exp(-C / 0.05) * log["v"] - got).max() < 1e-12
        wanted, _, _ = oracle.sinkhorn(C, a, b, 0.05, (0.7, 0.7), tol=0.0, sweeps=sweeps)
        with pytest.warns(UserWarning, match="did not converge"):
            got = pot.sinkhorn_unbalanced(a, b, C, 0.05, 0.7, stopThr=0, numItermax=sweeps)
        assert np.abs(got - wanted).max() < 1e-12
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            costs = pot.sinkhorn2(
                a, np.stack([b, b], 1), C, 0.05, stopThr=0, numItermax=sweeps, warn=False
            )
        assert np.abs(costs - (turned.T * C).sum()).max() < 1e-12


def test_warn_and_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    C, a, b = oracle.case(30, 30, kind="random")
    pot.sinkhorn(a, b, C, 1e-3, numItermax=1, warn=False)
    assert capsys.readouterr().out == ""
    with pytest.warns(ot.ConvergenceWarning):
        pot.sinkhorn(a, b, C, 1e-3, numItermax=1, verbose=True)
    assert "max_iter" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda C, a, b: pot.sinkhorn(a, b, C, 0.1, method="magic"), ProblemError, "method"),
        (lambda C, a, b: pot.sinkhorn(a, b, C, 0.1, speed=9), DTypeError, "option 'speed'"),
        (lambda C, a, b: pot.sinkhorn(a, b, C, 0), ProblemError, "reg is 0"),
        (lambda C, a, b: pot.sinkhorn(a, 2 * b, C, 0.1), ProblemError, "equal masses"),
        (lambda C, a, b: pot.sinkhorn_unbalanced(a, b, C, 1, 1, reg_type="l2"), ProblemError,
         "reg_type"),
        (lambda C, a, b: pot.sinkhorn_unbalanced(a, b, C, 1, [1, 2, 3]), ProblemError, "3 entries"),
        (lambda C, a, b: pot.sinkhorn_unbalanced(a, b, C, 1, None), DTypeError, "reg_m is None"),
        (lambda C, a, b: pot.sinkhorn_unbalanced2(a, b, C, 1, 1, returnCost="x"), ProblemError,
         "returnCost"),
        (lambda C, a, b: pot.sinkhorn(a, b, C, 0.1, warmstart=3.0), DTypeError, "warmstart"),
        (lambda C, a, b: pot.sinkhorn(a, b, C, 0.1, warmstart=(a,)), DTypeError, "warmstart"),
        (lambda C, a, b: pot.sinkhorn(3.0, b, C, 0.1), DTypeError, "a is a float"),
        (lambda C, a, b: pot.solve(C, a, b, 1, grad="magic"), ProblemError, "grad is 'magic'"),
        (lambda C, a, b: pot.solve(C, a, b, 1, max_iter=0), ProblemError, "max_iter"),
        (lambda C, a, b: pot.solve(C, a, b, 1, method="magic"), ProblemError, "method"),
        (lambda C, a, b: pot.solve(C, a, b, 1, reg_type="L2"), NotImplementedError, "reg_type"),
        (lambda C, a, b: pot.solve(C, a, b, 1, reg_type=(abs, abs)), NotImplementedError,
         "reg_type"),
        (lambda C, a, b: pot.solve(C, a, b, unbalanced=1), NotImplementedError, "give reg"),
        (lambda C, a, b: pot.solve(C, a, b, 1, unbalanced=1, unbalanced_type="TV"),
         NotImplementedError, "unbalanced_type"),
        (lambda C, a, b: pot.solve_sample(C, C, method="1d"), NotImplementedError, "'1d'"),
        (lambda C, a, b: pot.solve_sample(C, C, metric="jaccard", reg=1), NotImplementedError,
         "metric"),
        (lambda C, a, b: pot.bregman.barycenter(C, C, 0.1), ValueError, "cost \\[bins, bins\\]"),
    ],
)  # fmt: skip
def test_bad_arguments(call: Any, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word) as caught:
        call(*A_CASE)
    assert isinstance(caught.value, ValueError | TypeError)
