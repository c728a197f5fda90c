"""Functions of torch where a matrix is sparse: against the same call with the dense matrix."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer
from gossamer import SparseLinear, SparseWeight
from gossamer.nn.layers.parameter import SparseParameter, stand_in
from gossamer.weight.operand import CALLS, Operand

F64 = torch.float64


def weight_of(rows: int, cols: int) -> tuple[SparseWeight, Tensor]:
    torch.manual_seed(0)
    weight = SparseWeight.from_dense(torch.randn(rows, cols, dtype=F64), "2:4")
    return weight, weight.to_dense()


def stack_of(count: int, rows: int, cols: int, turned: bool) -> tuple[SparseParameter, Tensor]:
    torch.manual_seed(0)
    layers = [
        SparseLinear.from_dense(stand_in(torch.randn(rows, cols, dtype=F64), True), "2:4")
        for _ in range(count)
    ]
    shape = (count, cols, rows) if turned else (count, rows, cols)
    whole = SparseParameter(layers, "stack", shape, turned)
    parts = torch.stack([layer.weight.to_dense() for layer in layers])
    return whole, parts.mT if turned else parts


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64, requires_grad=True)


# Calls of (x, w, b) with w [8, 12], and the sizes of x and b.
MATRIX: dict[str, tuple[Callable[[Any, Any, Any], Tensor], tuple[int, ...], int]] = {
    "linear": (F.linear, (5, 12), 8),
    "linear of 3-D": (F.linear, (2, 5, 12), 8),
    "linear by keyword": (lambda x, w, b: F.linear(input=x, weight=w, bias=b), (5, 12), 8),
    "linear of the transpose": (lambda x, w, b: F.linear(x, w.t(), b), (5, 8), 12),
    "linear of T": (lambda x, w, b: F.linear(x, w.T, b), (5, 8), 12),
    "linear of mT": (lambda x, w, b: F.linear(x, w.mT, b), (5, 8), 12),
    "linear of transpose()": (lambda x, w, b: F.linear(x, w.transpose(0, 1), b), (5, 8), 12),
    "linear of transpose(-1)": (lambda x, w, b: F.linear(x, w.transpose(-1, -2), b), (5, 8), 12),
    "linear of torch.t": (lambda x, w, b: F.linear(x, torch.t(w), b), (5, 8), 12),
    "linear of torch.transpose": (
        lambda x, w, b: F.linear(x, torch.transpose(w, dim0=0, dim1=1), b), (5, 8), 12,
    ),
    "transpose twice": (lambda x, w, b: F.linear(x, w.transpose(0, 1).T, b), (5, 12), 8),
    "@": (lambda x, w, b: x @ w + b, (5, 8), 12),
    "@ T": (lambda x, w, b: x @ w.T + b, (2, 5, 12), 8),
    "@ mT": (lambda x, w, b: x @ w.mT + b, (12,), 8),
    "w @ x": (lambda x, w, b: (w @ x).mT + b, (2, 12, 5), 8),
    "w @ vector": (lambda x, w, b: w @ x + b, (12,), 8),
    "w.t() @ x": (lambda x, w, b: (w.t() @ x).mT + b, (8, 3), 12),
    "matmul": (lambda x, w, b: torch.matmul(x, w) + b, (5, 8), 12),
    "mm": (lambda x, w, b: torch.mm(x, w) + b, (5, 8), 12),
    "tensor.mm": (lambda x, w, b: x.mm(w) + b, (5, 8), 12),
    "addmm": (lambda x, w, b: torch.addmm(b, x, w.t()), (5, 12), 8),
    "addmm scaled": (lambda x, w, b: torch.addmm(b, x, w, beta=2, alpha=0.5), (5, 8), 12),
    "tensor.addmm": (lambda x, w, b: b.addmm(x, w), (5, 8), 12),
    "addmm from the left": (
        lambda x, w, b: torch.addmm(b.unsqueeze(1), w, x).mT, (12, 5), 8,
    ),
    "einsum": (lambda x, w, b: torch.einsum("bti,oi->bto", x, w) + b, (2, 5, 12), 8),
    "einsum list": (lambda x, w, b: torch.einsum("oi,ti->to", [w, x]) + b, (5, 12), 8),
    "einsum turned": (lambda x, w, b: torch.einsum("to,oi->ti", x, w) + b, (5, 8), 12),
    "einsum moved": (lambda x, w, b: torch.einsum("bit,oi->tbo", x, w) + b, (2, 12, 5), 8),
}  # fmt: skip


@pytest.mark.parametrize("of", ["weight", "parameter", "turned parameter"])
@pytest.mark.parametrize("name", MATRIX)
def test_products_are_those_of_the_dense_matrix(name: str, of: str) -> None:
    call, shape, size = MATRIX[name]
    turned = of == "turned parameter"
    weight, dense = weight_of(12, 8) if turned else weight_of(8, 12)
    dense = (dense.t() if turned else dense).detach().requires_grad_()
    operand: Any = weight
    if of != "weight":
        operand = SparseParameter([SparseLinear.of_parts(weight)], "matrix", (8, 12), turned)
    x, b = randn(*shape), randn(size)
    y, expected = call(x, operand, b), call(x, dense, b)
    torch.testing.assert_close(y, expected)
    g = torch.randn_like(y)
    got = torch.autograd.grad(y, [x, b, weight.values], g)
    want = torch.autograd.grad(expected, [x, b, dense], g)
    torch.testing.assert_close(got[:2], want[:2])
    grad = want[2].t() if turned else want[2]
    kept = gossamer.backend.gather(grad.contiguous(), weight.structure)
    torch.testing.assert_close(got[2], kept)


def test_gradcheck_of_both_products() -> None:
    weight, _ = weight_of(8, 12)
    values, structure = weight.values, weight.structure

    def of(v: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        held = SparseWeight(v, structure, "2:4")
        del held._parameters["values"]
        held.__dict__["values"] = v
        return F.linear(x, held), z @ held

    assert torch.autograd.gradcheck(of, (values, randn(3, 12), randn(3, 8)))


STACK: dict[str, tuple[Callable[[Any, Any], Tensor], tuple[int, ...]]] = {
    "bmm": (torch.bmm, (3, 5, 8)),
    "@": (lambda x, w: x @ w, (3, 5, 8)),
    "one for all": (lambda x, w: x @ w, (5, 8)),
    "bmm of the transpose": (lambda x, w: torch.bmm(x, w.transpose(1, 2)), (3, 5, 12)),
    "from the left": (lambda x, w: torch.bmm(w, x), (3, 12, 5)),
    "baddbmm": (lambda x, w: torch.baddbmm(x[:, :, :1], x, w, beta=2), (3, 5, 8)),
    "index": (lambda x, w: F.linear(x, w[1]) + x @ w[-2].t(), (5, 12)),
    "index by a tensor": (lambda x, w: x @ w[torch.tensor(2)], (5, 8)),
    "iteration": (lambda x, w: sum(x @ one for one in w), (5, 8)),
    "chosen": (lambda x, w: torch.bmm(x, w[torch.tensor([2, 0, 2, 2])]), (4, 1, 8)),
    "chosen from the left": (
        lambda x, w: torch.bmm(w[torch.tensor([2, 0, 2, 2])], x), (4, 12, 1),
    ),
}  # fmt: skip
if hasattr(F, "grouped_mm"):
    ENDS = torch.tensor([2, 2, 7], dtype=torch.int32)
    STACK |= {
        "grouped": (
            lambda x, w: (
                F.grouped_mm(x, w, offs=ENDS)
                if isinstance(w, Operand)
                else torch.cat([x[:2] @ w[0], x[2:] @ w[2]])
            ),
            (7, 8),
        ),
        "grouped by the transpose": (
            lambda x, w: (
                F.grouped_mm(x, w.transpose(-2, -1), offs=ENDS)
                if isinstance(w, Operand)
                else torch.cat([x[:2] @ w[0].t(), x[2:] @ w[2].t()])
            ),
            (7, 12),
        ),
    }


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", STACK)
def test_products_with_stacks(name: str, turned: bool) -> None:
    call, shape = STACK[name]
    whole, dense = stack_of(3, *((12, 8) if turned else (8, 12)), turned)
    dense = dense.detach().requires_grad_()
    x = randn(*shape)
    y, expected = call(x, whole), call(x, dense)
    torch.testing.assert_close(y, expected)
    g = torch.randn_like(y)
    values = [layer.weight.values for layer in whole.children()]
    got = torch.autograd.grad(y, [x, *values], g, allow_unused=True)
    want_x, want = torch.autograd.grad(expected, [x, dense], g)
    torch.testing.assert_close(got[0], want_x)
    for layer, grad, part in zip(whole.children(), got[1:], want, strict=True):
        part = (part.t() if turned else part).contiguous()
        kept = gossamer.backend.gather(part, layer.weight.structure)
        torch.testing.assert_close(torch.zeros_like(kept) if grad is None else grad, kept)


def test_every_registered_function_takes_an_operand() -> None:
    """A function that torch does not dispatch would never reach its entry."""
    assert {F.linear, torch.matmul, torch.addmm, torch.bmm, torch.einsum} <= CALLS.keys()
    assert {torch.lstm, torch.gru_cell, F.multi_head_attention_forward} <= CALLS.keys()


REFUSED: dict[str, Callable[[Any, Any], Any]] = {
    "function": lambda w, x: torch.exp(w),
    "sum": lambda w, x: w.sum(),
    "times": lambda w, x: 2 * w,
    "tensor times": lambda w, x: x * w,
    "plus": lambda w, x: w + 1,
    "conv": lambda w, x: F.conv1d(x, w),
    "embedding": lambda w, x: F.embedding(torch.tensor([1]), w),
    "two": lambda w, x: F.linear(w, w),
    "three of einsum": lambda w, x: torch.einsum("ti,oi,oi->to", x, w, w),
    "diagonal of einsum": lambda w, x: torch.einsum("ti,ii->t", x, w),
    "no tensor": lambda w, x: w @ 3,
    "index": lambda w, x: w[0],
    "other dimensions": lambda w, x: getattr(w.t(), "transpose")(0, 0),  # noqa: B009
    "no such dimension": lambda w, x: w.transpose(0, 3),
}


@pytest.mark.parametrize("convert", ["float", "double", "bfloat16", "half"])
def test_a_conversion_in_a_forward_pass_changes_nothing(convert: str) -> None:
    whole = SparseParameter([SparseLinear(8, 8, bias=False, pattern="2:4")], "matrix", (8, 8))
    assert whole.to(torch.float32) is whole.float() is whole.type(torch.float32) is whole
    if convert != "float":
        with pytest.raises(gossamer.DTypeError, match="conversion to torch"):
            getattr(whole, convert)()
    assert whole.dtype is torch.float32
    nn.Sequential(whole).double()
    assert whole.dtype is torch.float64


@pytest.mark.parametrize("of", ["weight", "parameter"])
@pytest.mark.parametrize("name", REFUSED)
def test_other_functions_are_refused_by_the_name_of_the_layer(name: str, of: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = SparseLinear(8, 8, bias=False, pattern="2:4")
            whole = SparseParameter([layer], "matrix", (8, 8))
            self.part = nn.ModuleDict({"w": layer.weight if of == "weight" else whole})

        def forward(self, x: Tensor) -> Any:
            return REFUSED[name](self.part["w"], x)

    with pytest.raises(gossamer.DTypeError, match=r"part\.w: Sparse.*exclude"):
        Model()(torch.randn(2, 8))


def test_products_under_a_compiler_and_in_exports() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, _ = weight_of(8, 8)
            self.v, _ = stack_of(2, 8, 8, True)

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(x[0], F.linear(x, self.w) @ self.w, self.v[1]) @ self.w.t()

    model, x = Model(), randn(3, 8)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    assert torch.equal(
        *(torch.autograd.grad(m(x).sum(), model.w.values)[0] for m in (compiled, model))
    )
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


def test_autocast() -> None:
    layer = SparseLinear(16, 16, pattern="2:4")
    x = torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = F.linear(x, layer.weight, layer.bias)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=2e-2, atol=2e-2)
