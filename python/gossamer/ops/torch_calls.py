"""What functions of torch compute where a matrix is sparse: F.linear(x, w), x @ w, bmm, einsum.

Every product comes down to two of an operand W [rows, cols]:

    right(W, x, b) = x W^T + b      left(W, x) = x W

Reference: NumPy's NEP 18 and torch's `__torch_function__`, which calls them.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.errors import ShapeError
from gossamer.ops import recurrent
from gossamer.ops.autocast import add_bias
from gossamer.ops.verbs import spmm, spmm_t
from gossamer.weight import SparseWeight
from gossamer.weight.operand import CALLS, Operand, Turned, check_tensor, refused


def right(operand: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b [..., rows] for x [..., cols]."""
    if isinstance(operand, SparseWeight):
        return spmm(x, _in_order(operand), bias)
    if isinstance(operand, Turned):
        y = left(operand.of, x)
        return add_bias(y, bias)
    found: Tensor = operand.right(x, bias)
    return found


def left(operand: Any, x: Tensor) -> Tensor:
    """Return x W [..., cols] for x [..., rows]."""
    if isinstance(operand, SparseWeight):
        return spmm_t(x, _in_order(operand))
    if isinstance(operand, Turned):
        return right(operand.of, x)
    found: Tensor = operand.left(x)
    return found


def _in_order(weight: SparseWeight) -> SparseWeight:
    if weight.has_own_order:
        raise refused("a product outside of its layer, whose rows are grouped,", (weight,))
    return weight


def linear(input: Any, weight: Any, bias: Any = None) -> Tensor:  # noqa: A002 - as torch has it
    """`F.linear`."""
    if not isinstance(weight, Operand) or len(weight.shape) != 2:
        raise refused("F.linear of a sparse input", (input, weight))
    return right(weight, check_tensor(input, "F.linear", weight), bias)


def matmul(input: Any, other: Any) -> Tensor:  # noqa: A002 - as torch has it
    """`torch.matmul` and `@`, of a tensor and an operand in either order."""
    if isinstance(other, Operand):
        x = check_tensor(input, "matmul", other)
        return left(other, x) if len(other.shape) == 2 else _stacked(x, other)
    x = check_tensor(other, "matmul", input)
    if len(input.shape) == 3:
        return _stacked(x.mT, input.t()).mT
    return right(input, x) if x.dim() == 1 else right(input, x.mT).mT


def addmm(input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Tensor:  # noqa: A002
    """`torch.addmm`."""
    check_tensor(input, "addmm", mat1 if isinstance(mat1, Operand) else mat2)
    if beta == 1 and alpha == 1 and isinstance(mat2, Operand) and input.dim() == 1:
        return right(mat2.t(), check_tensor(mat1, "addmm", mat2), input)
    return torch.add(beta * input, matmul(mat1, mat2), alpha=alpha)


def baddbmm(input: Any, batch1: Any, batch2: Any, *, beta: float = 1, alpha: float = 1) -> Tensor:  # noqa: A002
    """`torch.baddbmm`."""
    check_tensor(input, "baddbmm", batch1 if isinstance(batch1, Operand) else batch2)
    return torch.add(beta * input, matmul(batch1, batch2), alpha=alpha)


def _stacked(x: Tensor, stack: Any) -> Tensor:
    """Return the products x[i] W[i] [n, batch, cols] for x [n, batch, rows], or one x for all."""
    if hasattr(stack, "chosen"):  # matrices that were selected one per row
        return stack.chosen(x)  # type: ignore[no-any-return]
    if x.dim() == 2:
        x = x.expand(len(stack), *x.shape)
    if x.dim() != 3 or len(x) != len(stack):
        raise ShapeError(
            f"a product of {tuple(x.shape)} and a stack of sparse matrices {tuple(stack.shape)}: "
            f"give [{len(stack)}, batch, {stack.shape[1]}]"
        )
    return torch.stack([left(stack[i], x[i]) for i in range(len(stack))])


def grouped(input: Any, mat2: Any, offs: Any = None, **others: Any) -> Tensor:  # noqa: A002
    """`F.grouped_mm` of rows [rows, in] in runs, one per matrix of a stack, that end at `offs`."""
    plain = all(value is None for value in others.values())
    if offs is None or not plain or not isinstance(mat2, Operand):
        raise refused("grouped_mm of these arguments", (input, mat2))
    stack: Any = mat2
    x = check_tensor(input, "grouped_mm", stack)
    ends = [int(end) for end in offs.tolist()]
    starts = [0, *ends[:-1]]
    runs = [
        left(stack[i], x[start:end])
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
        if end > start
    ]
    rest = x.new_zeros(len(x) - (ends[-1] if ends else 0), stack.shape[2])
    return torch.cat([*runs, rest])


def bilinear(input1: Any, input2: Any, weight: Any, bias: Any = None) -> Tensor:
    """`F.bilinear`: x1 W[k] x2 for each of the matrices [in1, in2] of a folded stack."""
    if getattr(weight, "fold", None) is None:
        raise refused("bilinear of this weight", (weight,))
    rows = right(weight.fold, check_tensor(input2, "bilinear", weight))
    of_first = rows.view(*rows.shape[:-1], *weight.shape[:2])
    y: Tensor = (of_first @ input1.unsqueeze(-1)).squeeze(-1)
    return add_bias(y, bias)


def einsum(equation: Any, *operands: Any) -> Tensor:
    """`torch.einsum` of a tensor and one operand that share exactly one letter."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    terms, arrow, out = str(equation).replace(" ", "").partition("->")
    names = terms.split(",")
    if len(operands) == 2 and arrow and len(names) == 2:
        which = 1 if isinstance(operands[1], Operand) else 0
        mine, theirs = names[which], names[1 - which]
        x, w = operands[1 - which], operands[which]
        shared = set(mine) & set(theirs)
        plain = "." not in theirs and all(len(set(term)) == len(term) for term in names)
        if isinstance(x, Tensor) and len(mine) == 2 and len(shared) == 1 and plain:
            at = shared.pop()
            free = mine.replace(at, "")
            rest = theirs.replace(at, "")
            if at not in out and sorted(out) == sorted(rest + free):
                moved = x.movedim(theirs.index(at), -1)
                y = right(w, moved) if mine[1] == at else left(w, moved)
                return y.permute([(rest + free).index(letter) for letter in out])
    raise refused(f"einsum {equation!r}", operands)


def _attention() -> Any:
    """Return torch's own body of attention, which does not ask for overrides again.

    Its products then reach the operands one by one. The body of the installed torch keeps every
    detail of masks, added keys and weights, in each version of torch.
    """
    own = F.multi_head_attention_forward
    names = {**vars(F), "has_torch_function": lambda *_: False}
    body = FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
    body.__kwdefaults__ = own.__kwdefaults__
    return body


def _register() -> None:
    tensor = torch.Tensor
    CALLS[F.linear] = linear
    for product in (torch.matmul, torch.mm, torch.bmm, tensor.matmul, tensor.mm, tensor.bmm):
        CALLS[product] = matmul
    CALLS[tensor.__matmul__] = matmul
    CALLS[torch.t] = Operand.t
    CALLS[torch.transpose] = lambda input, dim0, dim1: input.transpose(dim0, dim1)  # noqa: A006
    CALLS[tensor.__rmatmul__] = lambda other, x: matmul(x, other)
    CALLS[torch.addmm] = CALLS[tensor.addmm] = addmm
    CALLS[torch.baddbmm] = CALLS[tensor.baddbmm] = baddbmm
    CALLS[F.bilinear] = CALLS[torch.bilinear] = bilinear
    CALLS[torch.einsum] = einsum
    for place in (F, torch, torch._C._nn):
        for name in ("grouped_mm", "_grouped_mm"):
            if hasattr(place, name):
                CALLS[getattr(place, name)] = grouped
    CALLS["grouped_mm_fallback"] = grouped  # of transformers, for older versions of torch
    CALLS[F.multi_head_attention_forward] = _attention()
    CALLS.update(recurrent.CALLS)


_register()

__all__ = ["addmm", "baddbmm", "bilinear", "einsum", "grouped", "left", "linear", "matmul", "right"]
