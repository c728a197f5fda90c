"""Iterations of sparse coding as layers: ISTA, LISTA and IHT with a fixed number of steps.

Every layer maps y [batch, features] to a code x [batch, atoms] with y close to dictionary x. All
iterations start from x = 0 and are differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor, nn

from gossamer.arguments import NotNegative, Positive, Range, check
from gossamer.backend import check_array
from gossamer.backend.arrays import FLOATING, WIDE_FLOATS
from gossamer.codes import core
from gossamer.errors import ArgumentError, ShapeError


def soft_threshold(x: Tensor, threshold: Tensor | float) -> Tensor:
    """Return sign(x) max(|x| - threshold, 0), differentiable in both; zeros are +0.0.

    Args:
        x: any shape.
        threshold: number or tensor >= 0, broadcast to x.

    Returns:
        A tensor of x's shape. Where |x| > threshold, its derivative in x is 1 and in the threshold
        -sign(x); elsewhere both are 0.

    Example:
        >>> soft_threshold(torch.tensor([-3.0, 0.5, 2.0]), 1.0)
        tensor([-2.,  0.,  1.])
    """
    check(soft_threshold, locals())
    check_array(x, "soft_threshold: x", dtypes=FLOATING)
    if isinstance(threshold, Tensor):
        # Entries below 0 are not looked for: it would take a pass, and a learned one may dip.
        check_array(threshold, "soft_threshold: threshold", dtypes=FLOATING)
        if not _broadcasts(threshold.shape, x.shape):
            raise ShapeError(
                f"soft_threshold got a threshold of shape {list(threshold.shape)} for x of "
                f"{list(x.shape)}; one that broadcasts to x is needed"
            )
    elif not threshold >= 0:
        raise ArgumentError(f"soft_threshold got threshold={threshold}; it must be at least 0")
    t = torch.as_tensor(threshold, dtype=x.dtype)
    # x - x is +0.0; sign(x) * 0 is -0.0 for a negative x.
    return x - torch.clamp(x, -t, t)


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    try:
        return bool(torch.broadcast_shapes(shape, to) == to)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False


def hard_top_k(x: Tensor, k: int) -> Tensor:
    """Keep the k largest |x| of each row and set the rest to +0.0; ties keep the lowest index.

    Args:
        x: float32 or float64 [batch, entries].
        k: number of entries per row, in [1, entries].

    Returns:
        [batch, entries]; only kept entries have a gradient.

    Raises:
        ShapeError: x is empty or not a matrix.
        ArgumentError: k is outside [1, entries], or x holds a NaN.

    Example:
        >>> hard_top_k(torch.tensor([[1.0, -3.0, 2.0]]), 2)
        tensor([[ 0., -3.,  2.]])
    """
    check_array(x, "hard_top_k: x", rank=2, dtypes=WIDE_FLOATS, device=True)
    indices = core.top_k(x.detach().abs(), k).indices
    kept = torch.zeros(x.shape, dtype=torch.bool).scatter_(1, indices, True)
    return torch.where(kept, x, 0.0) + 0.0


Layers = Annotated[int, Range(lambda v: 1 <= v <= 10_000, "at least 1 and at most 10000")]


class _Unfolded(nn.Module):
    step: Tensor

    def __init__(self, dictionary: Tensor, layers: int, step: float | None) -> None:
        super().__init__()
        who = type(self).__name__
        check_array(dictionary, f"{who}: dictionary", rank=2, dtypes=FLOATING, filled=True)
        norm = float(torch.linalg.matrix_norm(dictionary.detach().double(), 2))
        if not (0.0 < norm < math.inf):
            raise ArgumentError(
                f"{who} got a dictionary of norm {norm}; a finite norm above 0 is needed"
            )
        largest = 1.0 / norm**2
        if step is None:
            # Slightly smaller, so that rounding to float32 does not exceed the bound.
            step = largest * (1.0 - 1e-6)
        if step > largest:
            raise ArgumentError(
                f"{who} got step={step}; a step in (0, {largest:.6g}] is needed: above "
                "1 / ||dictionary||^2 the objective may rise"
            )
        self.layers = layers
        self.register_buffer("step", torch.tensor(step, dtype=dictionary.dtype))

    def _check(self, y: Tensor, m: int) -> Tensor:
        check_array(y, f"{type(self).__name__}: y", rank=2, dtypes=(self.step.dtype,))
        if y.shape[1] != m:
            raise ShapeError(
                f"{type(self).__name__} got y of shape {list(y.shape)}; [batch, {m}] is needed"
            )
        return y

    def _residual(self, dictionary: Tensor, x: Tensor, y: Tensor) -> Tensor:
        self._check(y, dictionary.shape[0])
        check_array(x, f"{type(self).__name__}: x", rank=2, dtypes=(self.step.dtype,))
        if x.shape != (len(y), dictionary.shape[1]):
            raise ShapeError(
                f"{type(self).__name__} got x of shape {list(x.shape)}; "
                f"[{len(y)}, {dictionary.shape[1]}] is needed"
            )
        return x @ dictionary.T - y

    def iterates(self, y: Tensor) -> Iterator[Tensor]:
        """Yield the codes [batch, atoms] after 1, 2, ..., `layers` steps."""
        raise NotImplementedError

    def forward(self, y: Tensor) -> Tensor:
        """Return the code after the last step.

        Args:
            y: [batch, features].

        Returns:
            [batch, atoms].
        """
        *_, x = self.iterates(y)
        return x


class ISTA(_Unfolded):
    """ISTA: x+ = soft(x - step A'(A x - y), step lam), for 1/2 ||A x - y||^2 + lam ||x||_1.

    Args:
        dictionary: A [features, atoms]; becomes a parameter. The default step is valid for its
            initial norm only: to train it, choose a smaller step or normalise it after each update.
        lam: strength of the l1 term, >= 0; becomes a parameter.
        layers: number of steps.
        step: step size in (0, 1 / ||A||^2], for which the objective never rises; None is the
            largest.

    Raises:
        ShapeError: the dictionary is empty or not a matrix.
        ArgumentError: a number is out of range.
        DTypeError: the dictionary is not of a floating dtype.

    Reference:
        Daubechies, Defrise, De Mol 2004, "An iterative thresholding algorithm for linear inverse
        problems with a sparsity constraint"; Gregor & LeCun 2010 (as layers).

    Example:
        >>> ISTA(torch.eye(2), lam=1.0, layers=50)(torch.tensor([[3.0, 0.5]])).round(decimals=3)
        tensor([[2., 0.]], grad_fn=<RoundBackward1>)
    """

    def __init__(
        self,
        dictionary: Tensor,
        lam: NotNegative,
        layers: Layers = 16,
        step: Positive | None = None,
    ) -> None:
        check(ISTA.__init__, locals())
        super().__init__(dictionary, layers, step)
        self.dictionary = nn.Parameter(dictionary.detach().clone())
        self.lam = nn.Parameter(_strength(lam, dictionary))

    def iterates(self, y: Tensor) -> Iterator[Tensor]:
        """Yield the codes [batch, atoms] after 1, 2, ..., `layers` steps."""
        A = self.dictionary
        self._check(y, A.shape[0])
        x = y.new_zeros(y.shape[0], A.shape[1])
        threshold = self.step * self.lam.clamp_min(0)
        for _ in range(self.layers):
            x = soft_threshold(x - self.step * ((x @ A.T - y) @ A), threshold)
            yield x

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """Return 1/2 ||A x - y||^2 + lam ||x||_1 per row, [batch]."""
        residual = self._residual(self.dictionary, x, y)
        return 0.5 * residual.square().sum(1) + self.lam * x.abs().sum(1)


class LISTA(_Unfolded):
    """LISTA: x+ = soft(W y + S x, theta), where W, S and theta are learned.

    It starts as ISTA, with W = step A', S = I - step A'A and theta = step lam.

    Args:
        dictionary: A [features, atoms]; initialises W and S and is not kept.
        lam: strength of the l1 term, >= 0; initialises theta.
        layers: number of steps.
        tied: share W and S among all layers, as published; False gives each layer its own.

    Raises:
        ShapeError: the dictionary is empty or not a matrix.
        ArgumentError: a number is out of range.
        DTypeError: the dictionary is not of a floating dtype.

    Reference:
        Gregor & LeCun 2010, "Learning Fast Approximations of Sparse Coding", algorithm 3.

    Example:
        >>> LISTA(torch.eye(2), lam=1.0, layers=3)(torch.tensor([[3.0, 0.5]])).shape
        torch.Size([1, 2])
    """

    def __init__(
        self, dictionary: Tensor, lam: NotNegative, layers: Layers = 16, tied: bool = True
    ) -> None:
        check(LISTA.__init__, locals())
        super().__init__(dictionary, layers, None)
        A, n = dictionary.detach(), dictionary.shape[1]
        copies = 1 if tied else layers
        S = torch.eye(n, dtype=A.dtype) - self.step * (A.T @ A)
        self.W = nn.Parameter((self.step * A.T).repeat(copies, 1, 1))
        self.S = nn.Parameter(S.repeat(copies, 1, 1))
        theta = self.step * _strength(lam, A)
        self.theta = nn.Parameter(theta.repeat(layers, n))

    def iterates(self, y: Tensor) -> Iterator[Tensor]:
        """Yield the codes [batch, atoms] after 1, 2, ..., `layers` steps."""
        self._check(y, self.W.shape[2])
        x = y.new_zeros(y.shape[0], self.S.shape[1])
        for layer in range(self.layers):
            at = min(layer, len(self.W) - 1)
            inner = y @ self.W[at].T + x @ self.S[at].T
            x = soft_threshold(inner, self.theta[layer].clamp_min(0))
            yield x


class IHT(_Unfolded):
    """IHT: x+ = H_k(x - step A'(A x - y)), for 1/2 ||A x - y||^2 with at most k non-zeros per row.

    H_k keeps the k largest magnitudes; only kept entries have a gradient.

    Args:
        dictionary: A [features, atoms]; becomes a parameter.
        k: non-zeros per row, in [1, atoms].
        layers: number of steps.
        step: step size in (0, 1 / ||A||^2], for which the objective never rises; None is the
            largest.

    Raises:
        ShapeError: the dictionary is empty or not a matrix.
        ArgumentError: a number is out of range.
        DTypeError: the dictionary is not of a floating dtype.

    Reference:
        Blumensath & Davies 2009, "Iterative Hard Thresholding for Compressed Sensing".

    Example:
        >>> IHT(torch.eye(2), k=1, layers=50)(torch.tensor([[3.0, 0.5]])).round(decimals=3)
        tensor([[3., 0.]], grad_fn=<RoundBackward1>)
    """

    def __init__(
        self, dictionary: Tensor, k: int, layers: Layers = 16, step: Positive | None = None
    ) -> None:
        check(IHT.__init__, locals())
        super().__init__(dictionary, layers, step)
        if not 1 <= k <= dictionary.shape[1]:
            raise ArgumentError(
                f"IHT got k={k}; an integer in [1, {dictionary.shape[1]}] is needed"
            )
        self.k = k
        self.dictionary = nn.Parameter(dictionary.detach().clone())

    def iterates(self, y: Tensor) -> Iterator[Tensor]:
        """Yield the codes [batch, atoms] after 1, 2, ..., `layers` steps."""
        A = self.dictionary
        self._check(y, A.shape[0])
        x = y.new_zeros(y.shape[0], A.shape[1])
        for _ in range(self.layers):
            x = hard_top_k(x - self.step * ((x @ A.T - y) @ A), self.k)
            yield x

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """Return 1/2 ||A x - y||^2 per row, [batch]."""
        return 0.5 * self._residual(self.dictionary, x, y).square().sum(1)


def _strength(lam: float, like: Tensor) -> Tensor:
    return torch.tensor(lam, dtype=like.dtype)
