"""Bad calls of gossamer.ot raise one class each, name the argument and change nothing else."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gossamer.ot as ot
from gossamer.errors import (
    ArgumentError,
    DeviceError,
    DTypeError,
    GossamerError,
    ProblemError,
    ShapeError,
)

NAN, INF = float("nan"), float("inf")
C = torch.rand(4, 5, dtype=torch.float64)
A = torch.full((4,), 0.25, dtype=torch.float64)
B = torch.full((5,), 0.2, dtype=torch.float64)
X, Y = torch.rand(4, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64)


def put(t: torch.Tensor, index: Any, value: float) -> torch.Tensor:
    t = t.clone()
    t[index] = value
    return t


Call = Callable[[], object]
# name, class of the error, call, words of the message
CASES: list[tuple[str, type[GossamerError], Call, str]] = [
    ("unequal masses", ProblemError, lambda: ot.solve(C, 2 * A, B),
     "a sums to 2 and b to 1.*unbalanced="),
    ("nearly equal masses", ProblemError, lambda: ot.solve(C, A, B * (1 + 1e-5)), "equal masses"),
    ("unequal in a batch", ProblemError,
     lambda: ot.solve(torch.stack([C, C]), torch.stack([A, 2 * A]), B),
     "in problem 1 of the batch"),
    ("negative a", ProblemError, lambda: ot.solve(C, put(A, 2, -0.1), B), r"a\[2\] is -0.1"),
    ("negative b", ProblemError, lambda: ot.solve(C, A, put(B, 0, -1.0)), r"b\[0\] is -1"),
    ("negative in a batch", ProblemError,
     lambda: ot.solve(torch.stack([C, C]), torch.stack([A, -A]), B), r"a\[1, 0\] is -0.25"),
    ("NaN in C", ProblemError, lambda: ot.solve(put(C, (1, 3), NAN), A, B), r"M\[1, 3\] is nan"),
    ("a row of infinite C", ProblemError, lambda: ot.solve(put(C, 3, INF), A, B),
     r"a\[3\] is 0.25, and every cost of that row of M is infinite"),
    ("infinite C", ProblemError, lambda: ot.solve(C + INF, A, B), r"a\[0\] is .* every cost"),
    ("minus infinite C", ProblemError, lambda: ot.solve(put(C, (3, 0), -INF), A, B),
     r"M\[3, 0\] is -inf"),
    ("NaN in a batch", ProblemError, lambda: ot.solve(torch.stack([C, C * NAN])),
     r"M\[1, 0, 0\] is nan"),
    ("NaN in a", ProblemError, lambda: ot.solve(C, put(A, 0, NAN), B), r"a\[0\] is nan"),
    ("infinite b", ProblemError, lambda: ot.solve(C, A, put(B, 4, INF)), r"b\[4\] is inf"),
    ("no mass", ProblemError, lambda: ot.solve(C, 0 * A, 0 * B), "a has no mass"),
    ("no mass in b", ProblemError, lambda: ot.solve(C, A, 0 * B, unbalanced=1.0), "b has no mass"),
    ("reg 0", ProblemError, lambda: ot.solve(C, A, B, reg=0), "reg is 0.0; a positive"),
    ("negative reg", ProblemError, lambda: ot.solve(C, A, B, reg=-1.0), "reg is -1.0; a positive"),
    ("NaN reg", ProblemError, lambda: ot.solve(C, A, B, reg=NAN), "reg is nan"),
    ("infinite reg", ProblemError, lambda: ot.solve(C, A, B, reg=INF), "reg is inf"),
    ("a text for reg", DTypeError, lambda: ot.solve(C, A, B, reg="small"), "reg is 'small'"),
    ("a bool for reg", DTypeError, lambda: ot.solve(C, A, B, reg=True), "reg is True"),
    ("None for reg", DTypeError, lambda: ot.solve(C, A, B, reg=None), "reg is None"),
    ("tensor reg 0", ProblemError, lambda: ot.solve(C, A, B, reg=torch.tensor(0.0)), "reg is 0.0"),
    ("reg of another batch", ShapeError, lambda: ot.solve(C, A, B, reg=torch.ones(3)),
     r"reg has shape \[3\]"),
    ("reg that overflows", ProblemError, lambda: ot.solve(1e200 * C, A, B, reg=1e-200),
     "M / reg overflows"),
    ("C that overflows", ProblemError, lambda: ot.solve(put(put(C, 0, 1.5e308), 1, -1.5e308), A, B),
     "overflows"),
    ("short a", ShapeError, lambda: ot.solve(C, A[:3], B), r"a has shape \[3\]; \[4\] is needed"),
    ("long b", ShapeError, lambda: ot.solve(C, A, A), r"b has shape \[4\]; \[5\] is needed"),
    ("a column for a", ShapeError, lambda: ot.solve(C, A[:, None], B), r"a has shape \[4, 1\]"),
    ("a of another batch", ShapeError,
     lambda: ot.solve(torch.stack([C] * 3), torch.stack([A] * 2), B),
     r"a has shape \[2, 4\].*\[3, 4\]"),
    ("C of one dimension", ShapeError, lambda: ot.solve(A), r"M has shape \[4\]"),
    ("C of four dimensions", ShapeError, lambda: ot.solve(C[None, None]),
     r"M has shape \[1, 1, 4, 5\]"),
    ("no rows", ShapeError, lambda: ot.solve(C[:0]), r"M has shape \[0, 5\].*empty"),
    ("no columns", ShapeError, lambda: ot.solve(C[:, :0]), r"M has shape \[4, 0\].*empty"),
    ("no problems", ShapeError, lambda: ot.solve(C[None][:0]), r"M has shape \[0, 4, 5\].*empty"),
    ("a scalar for C", ShapeError, lambda: ot.solve(torch.tensor(1.0)), r"M has shape \[\]"),
    ("integers", DTypeError, lambda: ot.solve(C.long()), "M has dtype torch.int64"),
    ("float16", DTypeError, lambda: ot.solve(C.half()), "M has dtype torch.float16"),
    ("complex", DTypeError, lambda: ot.solve(C + 0j), "M has dtype torch.complex128"),
    ("bools for a", DTypeError, lambda: ot.solve(C, A > 0), "a has dtype torch.bool"),
    ("NumPy integers", DTypeError, lambda: ot.solve(np.ones((2, 2), int)),
     "M has dtype int64; float32 or float64"),
    ("NumPy objects", DTypeError, lambda: ot.solve(np.ones((2, 2), object)),
     "M has dtype object; float32 or float64"),
    ("NumPy of the other byte order", DTypeError, lambda: ot.solve(np.ones((2, 2), ">f8")),
     "M has dtype >f8; float32 or float64"),
    ("a list", DTypeError, lambda: ot.solve(C.tolist()), "M is a list"),
    ("a list for a", DTypeError, lambda: ot.solve(C, A.tolist()), "a is a list"),
    ("a sparse C", DTypeError, lambda: ot.solve(C.to_sparse()), "M has layout torch.sparse_coo"),
    ("a sparse a", DTypeError, lambda: ot.solve(C, A.to_sparse()), "a has layout"),
    ("another device", DeviceError, lambda: ot.solve(C.to("meta")), "M is on meta"),
    ("a on another device", DeviceError, lambda: ot.solve(C, A.to("meta")), "a is on meta"),
    ("reg on another device", DeviceError, lambda: ot.solve(C, reg=torch.ones((), device="meta")),
     "reg is on"),
    ("a metric nobody has", ProblemError, lambda: ot.solve_sample(X, Y, metric="euclid"),
     "metric is 'euclid'"),
    ("x with NaN", ProblemError, lambda: ot.solve_sample(put(X, (0, 1), NAN), Y),
     r"cost of x and y: entry \[0, 0\]"),
    ("lazy x with NaN", ProblemError, lambda: ot.solve_sample(put(X, (0, 1), NAN), Y, lazy=True),
     r"x\[0, 1\] is nan"),
    ("lazy y infinite", ProblemError, lambda: ot.solve_sample(X, put(Y, (4, 0), INF), lazy=True),
     r"y\[4, 0\] is inf"),
    ("a zero vector", ProblemError,
     lambda: ot.solve_sample(X, put(Y, 3, 0.0), metric="cosine", lazy=True),
     r"y\[3\] is the zero vector"),
    ("a zero vector in x", ProblemError, lambda: ot.loss(put(X, 0, 0.0), Y, metric="cosine"),
     r"cosine cost of x and y: entry \[0, 0\]"),
    ("other dimensions", ShapeError, lambda: ot.solve_sample(X, Y[:, :2]),
     r"y has shape \[5, 2\] and x \[4, 3\]"),
    ("another batch of points", ShapeError, lambda: ot.loss(torch.stack([X, X]), Y),
     r"y has shape \[5, 3\]"),
    ("no points", ShapeError, lambda: ot.loss(X[:0], Y), r"x has shape \[0, 3\]"),
    ("no points in y", ShapeError, lambda: ot.loss(X, Y[:0]), r"y has shape \[0, 3\]"),
    ("a vector of points", ShapeError, lambda: ot.loss(X[0], Y), r"x has shape \[3\]"),
    ("a list of points", DTypeError, lambda: ot.loss(X, Y.tolist()), "y is a list"),
    ("points elsewhere", DeviceError, lambda: ot.loss(X, Y.to("meta")), "y is on meta"),
    ("weights of the wrong cloud", ShapeError, lambda: ot.loss(X, Y, B, A), r"a has shape \[5\]"),
    ("unequal weights of clouds", ProblemError, lambda: ot.loss(X, Y, 3 * A, B), "a sums to 3"),
    ("a regularizer nobody has", ProblemError, lambda: ot.solve(C, reg_type="L2"),
     "reg_type is 'L2'"),
    ("a penalty nobody has", ProblemError,
     lambda: ot.solve(C, unbalanced=1.0, unbalanced_type="TV"), "unbalanced_type is 'TV'"),
    ("penalty 0", ProblemError, lambda: ot.solve(C, unbalanced=0.0), "unbalanced is 0.0"),
    ("negative penalty", ProblemError, lambda: ot.solve(C, unbalanced=(1.0, -1.0)),
     "unbalanced is"),
    ("NaN penalty", ProblemError, lambda: ot.solve(C, unbalanced=NAN), "unbalanced is nan"),
    ("three penalties", ProblemError, lambda: ot.solve(C, unbalanced=(1, 2, 3)),
     "unbalanced has 3 entries"),
    ("a text for a penalty", DTypeError, lambda: ot.solve(C, unbalanced="x"), "unbalanced is 'x'"),
    ("a method nobody has", ProblemError, lambda: ot.solve(C, method="simplex"),
     "method is 'simplex'"),
    ("a Newton nobody has", ProblemError, lambda: ot.sinkhorn_newton_sparse(C, method="x"),
     "method is 'x'"),
    ("published unbalanced", ProblemError,
     lambda: ot.sinkhorn_newton_sparse(C, method="published", unbalanced=1),
     "unbalanced was given with the published"),
    ("tol 0", ProblemError, lambda: ot.solve(C, tol=0), "tol is 0"),
    ("NaN tol", ProblemError, lambda: ot.solve(C, tol=NAN), "tol is nan"),
    ("a text for tol", DTypeError, lambda: ot.solve(C, tol="x"), "tol is 'x'"),
    ("max_iter 0", ProblemError, lambda: ot.solve(C, max_iter=0), "max_iter is 0"),
    ("an endless max_iter", ProblemError, lambda: ot.solve(C, max_iter=10**20), "max_iter is 1000"),
    ("a bool for max_iter", ProblemError, lambda: ot.solve(C, max_iter=True), "max_iter is True"),
    ("half a max_iter", ProblemError, lambda: ot.solve(C, max_iter=1.5), "max_iter is 1.5"),
    ("omega 2", ProblemError, lambda: ot.sinkhorn(C, omega=2.0), "omega is 2.0"),
    ("omega below 1", ProblemError, lambda: ot.sinkhorn(C, omega=0.5), "omega is 0.5"),
    ("omega without sinkhorn", ProblemError, lambda: ot.solve(C, omega=1.5),
     "omega is 1.5 with method 'auto'"),
    ("negative ridge", ProblemError, lambda: ot.solve(C, ridge=-1.0), "ridge is -1.0"),
    ("a gradient nobody has", ProblemError, lambda: ot.solve(C, grad="envelope"),
     "grad is 'envelope'"),
    ("one potential", DTypeError, lambda: ot.solve(C, potentials_init=A),
     "potentials_init is not a pair"),
    ("short potentials", ShapeError, lambda: ot.solve(C, potentials_init=(A, A)),
     r"potentials_init\[1\] has shape \[4\]"),
    ("potentials with NaN", ProblemError, lambda: ot.solve(C, potentials_init=(A * NAN, B)),
     r"potentials_init\[0\]\[0\] is nan"),
    ("a list of potentials", DTypeError, lambda: ot.solve(C, potentials_init=([0] * 4, B)),
     r"potentials_init\[0\] is a list"),
    ("threshold 1", ProblemError, lambda: ot.solve(C).sparse_plan(1.0), "threshold is 1.0"),
    ("negative threshold", ProblemError, lambda: ot.solve(C).sparse_plan(-1e-3),
     "threshold is -0.001"),
    ("a text for a threshold", DTypeError, lambda: ot.solve(C).cost_gradient(C, "x"),
     "threshold is 'x'"),
    ("cost_gradient of a batch", ShapeError, lambda: ot.solve(C[None]).cost_gradient(C),
     "asked of a batch"),
    ("cost_gradient unbalanced", ProblemError, lambda: ot.solve(C, unbalanced=1.0).cost_gradient(C),
     "asked of an unbalanced"),
    ("a short grad_plan", ShapeError, lambda: ot.solve(C).cost_gradient(lambda i, j: torch.ones(2)),
     "grad_plan has shape"),
    ("grad_plan of another shape", ShapeError, lambda: ot.solve(C).cost_gradient(C.T),
     "grad_plan has shape"),
    ("a list for grad_plan", DTypeError, lambda: ot.solve(C).cost_gradient([1.0]),
     "grad_plan is a list"),
]  # fmt: skip


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(("name", "error", "call", "words"), CASES, ids=[c[0] for c in CASES])
def test_a_bad_call_is_a_value_error_that_names_its_argument(
    name: str, error: type[GossamerError], call: Call, words: str, grad: bool
) -> None:
    threads = torch.get_num_threads()
    with torch.set_grad_enabled(grad):
        with pytest.raises(GossamerError, match=words) as caught:
            call()
        assert torch.is_grad_enabled() == grad
    assert type(caught.value) is error
    assert torch.get_num_threads() == threads
    assert ot.solve(C, A, B, reg=0.1).status == "converged"


@pytest.mark.parametrize("name", ["M", "a", "b"])
def test_kinds_of_error(name: str) -> None:
    """Each class is what a caller of the rest of the library, or of ValueError, expects."""
    good = {"M": C, "a": A, "b": B}
    with pytest.raises(DeviceError, match=f"{name} is on meta"):
        ot.solve(**{**good, name: good[name].to("meta")})
    with pytest.raises(DTypeError, match=f"{name} has dtype"):
        ot.solve(**{**good, name: good[name].int()})
    with pytest.raises(ShapeError, match=f"{name} has shape"):
        ot.solve(**{**good, name: good[name][..., :0]})
    assert issubclass(ot.ProblemError, ArgumentError)
    assert issubclass(ArgumentError, ValueError)
    for kind in (ot.ProblemError, DTypeError, DeviceError):
        assert str(pickle.loads(pickle.dumps(kind("text")))) == "text"  # noqa: S301


def test_the_cost_matrix_has_one_name() -> None:
    for call in (lambda: ot.solve(a=A), lambda: ot.solve(C, M=C), lambda: ot.solve(C=C)):
        with pytest.raises(TypeError, match=r"'(M|C)'"):
            call()  # type: ignore[no-untyped-call]


def test_an_error_in_the_backward_leaves_grad_mode_alone() -> None:
    x = X.clone().requires_grad_()
    result = ot.solve_sample(x, Y, lazy=True, reg=0.1)
    with pytest.raises(GossamerError):
        result.value_linear.backward()
    assert torch.is_grad_enabled()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("method", ["auto", "sinkhorn", "newton", "published"])
@pytest.mark.parametrize("reg", [1e-12, 1e-6, 1e-3, 1e12])
@pytest.mark.parametrize("scale", [1e-100, 1.0, 1e100])
def test_no_call_hangs_or_gives_nan(scale: float, reg: float, method: str) -> None:
    """Whatever the scales: an answer with a status, finite numbers, within the cap."""
    a = put(A, 0, 1e-12)
    with np.errstate(all="raise"):
        try:
            result = ot.solve(
                scale * C, a / a.sum(), B, reg=reg * scale, method=method, max_iter=300
            )
        except ot.ConvergenceWarning:
            return  # the tests' filter makes it an error; it came in time
    assert result.status == "converged"
    assert bool(result.plan.isfinite().all())
    assert bool(torch.isfinite(result.value))
    assert float((result.plan.sum(1) - a / a.sum()).abs().sum()) < 1e-8
