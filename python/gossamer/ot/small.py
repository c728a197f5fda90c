"""Many tiny transport problems, one per token or head: matrices inside a model.

A doubly stochastic matrix comes from scores either by rounds of Sinkhorn (`sinkhorn_small`) or as a
mixture of permutations (`permutation_mixture`), which is doubly stochastic exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import torch
from torch import Tensor

from gossamer.arguments import Range, check
from gossamer.backend import transport
from gossamer.errors import DTypeError, ProblemError, ShapeError

__all__ = ["permutation_mixture", "sinkhorn_small"]

MOST = 16  # rows and columns of a problem; more are a matter of `solve`
MOST_ROUNDS = 1000
MOST_PERMUTED = 6  # 720 permutations
ROUNDS = Range(lambda v: 1 <= v <= MOST_ROUNDS, f"at least 1 and at most {MOST_ROUNDS}")

_LIBRARY = torch.library.Library("gossamer", "FRAGMENT")  # type: ignore[no-untyped-call]
_define: Callable[[str], object] = _LIBRARY.define
_ARGUMENTS = "Tensor scores, Tensor a, Tensor b, int iterations"
_define(f"sinkhorn_small({_ARGUMENTS}) -> Tensor")
_define(f"sinkhorn_small_backward({_ARGUMENTS}, Tensor grad) -> Tensor")


def sinkhorn_small(
    scores: Tensor,
    iterations: Annotated[int, ROUNDS] = 20,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
) -> Tensor:
    """Scale the rows and the columns of exp(scores) in turn, for many small matrices at once.

    Each round scales the rows to the sums a, then the columns to the sums b; the sums of the
    columns are exact in the end. One thread works on as many problems at a time as a vector has
    lanes, with one exponential per entry. The gradient is that of the rounds that were made, not of
    their limit.

    Args:
        scores: [..., n, m] of float64, float32, bfloat16 or float16, n and m at most 16; the
            last two are computed in float32. Minus infinity forbids an entry. Scores more than 69
            below the largest one of their row and column count as 69 below.
        iterations: rounds.
        a: [n], positive sums of the rows; None for ones. It gets no gradient.
        b: [m], positive sums of the columns; None for n / m. It gets no gradient.

    Returns:
        [..., n, m] of the dtype of the scores. A problem with NaN, infinity, or a row or column
        without any entry is NaN throughout; the others are not touched by it.

    Raises:
        ShapeError: fewer than two dimensions, sizes out of range, or a, b of other lengths.
        DTypeError: no floating dtype.
        ArgumentError: iterations out of range; sums that are not positive and finite.
        ProblemError: a and b have different totals.

    Reference:
        Sinkhorn and Knopp 1967, "Concerning nonnegative matrices and doubly stochastic matrices";
        Xie et al. 2025, "mHC: Manifold-Constrained Hyper-Connections", for 20 rounds on 4 x 4
        matrices per token and layer.

    Example:
        >>> plan = sinkhorn_small(torch.randn(1000, 4, 4))
        >>> torch.allclose(plan.sum(-2), torch.ones(1000, 4))
        True
    """
    if not torch.compiler.is_compiling():
        check(sinkhorn_small, locals())
    if not scores.dtype.is_floating_point:
        raise DTypeError(
            f"sinkhorn_small got scores of {scores.dtype}; a floating dtype is needed: call "
            ".float()"
        )
    if scores.ndim < 2 or not all(1 <= size <= MOST for size in scores.shape[-2:]):
        raise ShapeError(
            f"sinkhorn_small got scores of shape {tuple(scores.shape)}; [..., n, m] with 1 to "
            f"{MOST} rows and columns is needed; gossamer.ot.solve takes larger problems"
        )
    n, m = scores.shape[-2:]
    dtype = scores.dtype if scores.dtype in (torch.float32, torch.float64) else torch.float32
    rows = _sums("a", a, n, 1.0, scores, dtype)
    cols = _sums("b", b, m, n / m, scores, dtype)
    if (a is not None or b is not None) and not torch.compiler.is_compiling():
        total_a, total_b = float(rows.sum()), float(cols.sum())
        if not math.isclose(total_a, total_b, rel_tol=1e-4):
            raise ProblemError(
                f"sinkhorn_small got rows of total {total_a:g} and columns of total {total_b:g}; "
                "they must be equal: scale a or b"
            )
    flat = scores.reshape(-1, n, m).to(dtype).contiguous()
    plan: Tensor = torch.ops.gossamer.sinkhorn_small(flat, rows, cols, iterations)
    return plan.reshape(scores.shape).to(scores.dtype)


def permutation_mixture(logits: Tensor, n: int) -> Tensor:
    """Return doubly stochastic matrices: mixtures of all permutations of n.

    Args:
        logits: [..., n!] of a floating dtype; their softmax weighs the permutations, which are in
            the order of `itertools.permutations`. Row i of a permutation p has its 1 in column
            p[i].
        n: rows and columns, at most 6.

    Returns:
        [..., n, n] of the dtype of the logits; every row and column sums to 1 but for rounding.

    Raises:
        ArgumentError: n out of range.
        ShapeError: another number of logits.
        DTypeError: no floating dtype.

    Reference:
        Birkhoff 1946, "Three observations on linear algebra"; Yang et al. 2026, "mHC-lite", for
        its use in place of Sinkhorn.

    Example:
        >>> permutation_mixture(torch.tensor([0.0, float("-inf")]), 2)
        tensor([[1., 0.],
                [0., 1.]])
    """
    if not torch.compiler.is_compiling():
        check(permutation_mixture, locals())
    if not 1 <= n <= MOST_PERMUTED:
        raise ShapeError(
            f"permutation_mixture got n={n}; 1 to {MOST_PERMUTED} is possible: use sinkhorn_small"
        )
    if not logits.dtype.is_floating_point:
        raise DTypeError(
            f"permutation_mixture got logits of {logits.dtype}; a floating dtype is needed"
        )
    if logits.ndim < 1 or logits.shape[-1] != math.factorial(n):
        raise ShapeError(
            f"permutation_mixture got logits of shape {tuple(logits.shape)}; the last dimension "
            f"must be {math.factorial(n)}, the permutations of {n}"
        )
    table = _permutations(n).to(logits.device, logits.dtype)
    mixed: Tensor = logits.softmax(-1) @ table
    return mixed.reshape(*mixed.shape[:-1], n, n)


@cache
def _permutations(n: int) -> Tensor:
    """All permutation matrices, float32 [n!, n * n]."""
    places = torch.tensor(list(itertools.permutations(range(n))))
    return torch.nn.functional.one_hot(places, n).flatten(1).float()


def _sums(
    name: str, given: Tensor | None, size: int, each: float, like: Tensor, dtype: torch.dtype
) -> Tensor:
    if given is None:
        return torch.full((size,), each, dtype=dtype, device=like.device)
    if given.shape != (size,):
        raise ShapeError(
            f"sinkhorn_small got {name} of shape {tuple(given.shape)}; ({size},) is needed, the "
            "same sums for all problems"
        )
    return given.detach().to(like.device, dtype).contiguous()


def _forward(scores: Tensor, a: Tensor, b: Tensor, iterations: int) -> Tensor:
    return transport.sinkhorn_small(scores.contiguous(), a, b, iterations)


def _backward(scores: Tensor, a: Tensor, b: Tensor, iterations: int, grad: Tensor) -> Tensor:
    return transport.sinkhorn_small_backward(
        scores.contiguous(), a, b, iterations, grad.contiguous()
    )


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    scores, a, b, ctx.iterations = inputs
    ctx.save_for_backward(scores, a, b)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    found = torch.ops.gossamer.sinkhorn_small_backward(*ctx.saved_tensors, ctx.iterations, grad)
    return found, None, None, None


def _batched(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    """Put the mapped dimension among the problems; the sums are the same for all."""
    op = torch.ops.gossamer
    if in_dims[1] is not None or in_dims[2] is not None:
        raise ProblemError("sinkhorn_small takes one a and one b for all problems, also under vmap")
    scores, a, b, iterations, *grad = args
    dims = (in_dims[0], *in_dims[4:])
    flat = [_front(x, dim, info.batch_size) for x, dim in zip((scores, *grad), dims, strict=True)]
    call = op.sinkhorn_small_backward if grad else op.sinkhorn_small
    plan: Tensor = call(flat[0], a, b, iterations, *flat[1:])
    return plan.reshape(info.batch_size, -1, *plan.shape[1:]), 0


def _front(x: Tensor, dim: int | None, size: int) -> Tensor:
    every = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return every.reshape(-1, *every.shape[2:])


def _register() -> None:
    impl: Callable[..., object] = _LIBRARY.impl
    for name, kernel in (("sinkhorn_small", _forward), ("sinkhorn_small_backward", _backward)):
        impl(name, kernel, "CompositeExplicitAutograd")
        op = f"gossamer::{name}"
        torch.library.register_fake(op, lambda scores, *_: torch.empty_like(scores), lib=_LIBRARY)
        torch.library.register_vmap(op, _batched, lib=_LIBRARY)
    torch.library.register_autograd(
        "gossamer::sinkhorn_small", _gradients, setup_context=_context, lib=_LIBRARY
    )


_register()
