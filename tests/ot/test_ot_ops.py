"""The ops of gossamer.ot as torch.library, torch.compile and vmap see them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import gossamer.ot as ot
from gossamer.errors import GossamerError
from support import ot_oracle as oracle

INF = np.inf


def leaves(n: int = 5, m: int = 7) -> list[Tensor]:
    return [torch.tensor(t).requires_grad_() for t in oracle.case(n, m)]


def close(x: Tensor, y: Tensor, tol: float) -> None:
    assert float((x - y).abs().max()) < tol


def test_opcheck() -> None:
    C, a, b = (t.detach()[None].requires_grad_() for t in leaves(3, 4))
    reg = torch.tensor([0.2], dtype=torch.float64, requires_grad=True)
    ops = torch.ops.gossamer
    solver = (None, None, INF, INF, "auto", 1e-12, 1000, 1.0, 0.0)
    x, y = torch.randn(1, 3, 2, dtype=torch.float64), torch.randn(1, 4, 2, dtype=torch.float64)
    f, g, _ = ops.ot_potentials(C, None, "", a, b, reg, *solver)
    f, g = f.detach().requires_grad_(), g.detach().requires_grad_()
    plan = torch.rand(1, 3, 4, dtype=torch.float64, requires_grad=True)
    shift = torch.rand(1, 3, dtype=torch.float64, requires_grad=True)
    calls = [
        (ops.ot_potentials, (C, None, "", a, b, reg, *solver)),
        (ops.ot_potentials, (C, None, "", a, b, reg, f, g, 1.0, 2.0, "auto", 1e-9, 9999, 1.0, 0.1)),
        (ops.ot_laplacian, (plan, f, g, None, None, 0.0)),
        (ops.ot_laplacian, (plan, f, g, shift, None, 0.0)),
        (ops.ot_value, (C, None, "", a, b, reg, f, g, INF, INF, True)),
        (ops.ot_value, (x, y, "l1", a, b, reg, f, g, 1.0, 2.0, False)),
        (ops.ot_lazy_gradient, (x, y, "cosine", reg.detach(), f.detach(), g.detach())),
    ]
    for op, args in calls:
        results = opcheck(op.default, args)
        assert set(results.values()) == {"SUCCESS"}, (op, results)


@pytest.mark.parametrize("with_shift", [False, True])
def test_gradcheck_of_the_linear_solve(with_shift: bool) -> None:
    plan = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    q_f = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    q_g = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    shift = torch.rand(2, 3, dtype=torch.float64, requires_grad=True) if with_shift else None

    def call(plan: Tensor, q_f: Tensor, q_g: Tensor, *shift: Tensor) -> tuple[Tensor, Tensor]:
        first = shift[0] if shift else None
        return torch.ops.gossamer.ot_laplacian(plan, q_f, q_g, first, None, 0.0)

    args = (plan, q_f, q_g, *([shift] if with_shift else []))
    assert torch.autograd.gradcheck(call, args, atol=1e-7)
    assert torch.autograd.gradgradcheck(call, args, atol=1e-6)


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize(
    "form",
    [{}, pytest.param({"unbalanced": 0.5, "reg_type": "entropy"}, marks=pytest.mark.slow)],
)
def test_a_compiled_step_equals_an_eager_one(form: dict) -> None:
    def step(C: Tensor, a: Tensor, b: Tensor) -> Tensor:
        result = ot.solve(C.square(), a, b, reg=0.1, tol=1e-12, **form)
        return result.value + result.plan.square().sum() + result.potentials[0].cos().sum()

    args = leaves()
    got = torch.autograd.grad(compiled(step)(*args), args)
    for grad, wanted in zip(got, torch.autograd.grad(step(*args), args), strict=True):
        close(grad, wanted, 1e-12)


def test_a_compiled_call_checks_its_values_too() -> None:
    C, a, b = (t.detach() for t in leaves())
    function = compiled(lambda C, a, b: ot.solve(C, a, b, reg=0.1).plan)
    function(C, a, b)
    C[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"M\[1, 2\] is nan"):
        function(C, a, b)


def test_vmap_is_refused_with_a_way_out() -> None:
    C = torch.rand(3, 4, 5)
    with pytest.raises(GossamerError, match=r"\[B, rows, cols\] in one call"):
        torch.vmap(lambda c: ot.solve(c, reg=0.1).plan)(C)
