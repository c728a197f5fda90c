"""Iterations of sparse coding as layers: ISTA, LISTA and IHT, a fixed number of steps each.

Every layer takes y [batch, m] and gives a code x [batch, n] with y about equal to dictionary x; all
start from x = 0 and can be trained through.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gossamer.codes import core
from gossamer.errors import ArgumentError, DTypeError, ShapeError


def soft_threshold(x: Tensor, threshold: Tensor | float) -> Tensor:
    """sign(x) max(|x| - threshold, 0), differentiable in both; zeros are +0.0.

    Args:
        x: any shape.
        threshold: not negative, broadcast to x.

    Returns:
        Of x's shape. The gradient passes where |x| > threshold, and is -sign(x) there for the
        threshold.

    Example:
        >>> soft_threshold(torch.tensor([-3.0, 0.5, 2.0]), 1.0)
        tensor([-2.,  0.,  1.])
    """
    t = torch.as_tensor(threshold, dtype=x.dtype)
    # x - x is +0.0, where sign(x) * 0 would be -0.0 for a negative x.
    return x - torch.clamp(x, -t, t)


def hard_top_k(x: Tensor, k: int) -> Tensor:
    """Keeps x where |x| is among the k largest of its row (ties: the lowest index), +0.0 elsewhere.

    Args:
        x: float32 or float64 [batch, n].
        k: in [1, n].

    Returns:
        [batch, n]; the gradient passes at the kept entries.

    Raises:
        ShapeError: k is outside [1, n], or x is empty, not a matrix, or holds a NaN.

    Example:
        >>> hard_top_k(torch.tensor([[1.0, -3.0, 2.0]]), 2)
        tensor([[ 0., -3.,  2.]])
    """
    indices = core.top_k(x.detach().abs(), k).indices
    kept = torch.zeros(x.shape, dtype=torch.bool).scatter_(1, indices, True)
    return torch.where(kept, x, 0.0) + 0.0


class _Unfolded(nn.Module):
    step: Tensor

    def __init__(self, dictionary: Tensor, layers: int, step: float | None) -> None:
        super().__init__()
        who = type(self).__name__
        if not isinstance(dictionary, Tensor) or not dictionary.is_floating_point():
            raise DTypeError(f"{who} needs a dictionary tensor of a floating dtype")
        if dictionary.dim() != 2 or dictionary.numel() == 0:
            raise ShapeError(
                f"{who} got a dictionary of shape {list(dictionary.shape)}; [features, atoms], not "
                "empty, is needed"
            )
        if not isinstance(layers, int):
            raise ArgumentError(f"{who} got layers={layers}; a whole number is needed")
        norm = float(torch.linalg.matrix_norm(dictionary.detach().double(), 2))
        if not (0.0 < norm < math.inf):
            raise ArgumentError(
                f"{who} got a dictionary of norm {norm}; a finite one that is not zero is needed"
            )
        largest = 1.0 / norm**2
        if step is None:
            # A little below, so that rounding to float32 does not end above.
            step = largest * (1.0 - 1e-6)
        if layers < 1 or not (0.0 < step <= largest) or not math.isfinite(step):
            raise ArgumentError(
                f"{who} got layers={layers}, step={step}; at least one layer and a step in "
                f"(0, {largest:.6g}] are needed, 1 / ||dictionary||^2: above it the objective "
                "need not fall"
            )
        self.layers = layers
        self.register_buffer("step", torch.tensor(step, dtype=dictionary.dtype))

    def _check(self, y: Tensor, m: int) -> Tensor:
        dtype = self.step.dtype
        if not isinstance(y, Tensor) or y.dtype != dtype or y.is_sparse:
            raise DTypeError(
                f"{type(self).__name__} got y that is {getattr(y, 'dtype', type(y).__name__)}; a "
                f"dense tensor of {dtype} is needed, as the dictionary"
            )
        if y.dim() != 2 or y.shape[1] != m:
            raise ShapeError(
                f"{type(self).__name__} got y of shape {list(y.shape)}; [batch, {m}] is needed"
            )
        return y

    def iterates(self, y: Tensor) -> Iterator[Tensor]:
        """The codes after 1, 2, ..., ``layers`` steps."""
        raise NotImplementedError

    def forward(self, y: Tensor) -> Tensor:
        """The code after the last step.

        Args:
            y: [batch, m].

        Returns:
            [batch, n].
        """
        *_, x = self.iterates(y)
        return x


class ISTA(_Unfolded):
    """x+ = soft(x - step A'(A x - y), step lam), for 1/2 ||A x - y||^2 + lam ||x||_1.

    Args:
        dictionary: A, [m, n]; becomes a parameter. Its norm sets the default step: train it only
            with a step to spare, or normalise it after each update.
        lam: strength of the l1 term, not negative; becomes a parameter.
        layers: number of steps.
        step: in (0, 1 / ||A||^2], for which the objective falls at every step; the default is the
            largest.

    Raises:
        ShapeError: a size or number out of range.
        DTypeError: the dictionary is not of a floating dtype.

    Reference: Daubechies, Defrise, De Mol 2004; as layers: Gregor & LeCun 2010.

    Example:
        >>> ISTA(torch.eye(2), lam=1.0, layers=50)(torch.tensor([[3.0, 0.5]])).round(decimals=3)
        tensor([[2., 0.]], grad_fn=<RoundBackward1>)
    """

    def __init__(
        self, dictionary: Tensor, lam: float, layers: int = 16, step: float | None = None
    ) -> None:
        super().__init__(dictionary, layers, step)
        self.dictionary = nn.Parameter(dictionary.detach().clone())
        self.lam = nn.Parameter(_strength(lam, dictionary))

    def iterates(self, y: Tensor) -> Iterator[Tensor]:
        """The codes after 1, 2, ..., ``layers`` steps."""
        A = self.dictionary
        self._check(y, A.shape[0])
        x = y.new_zeros(y.shape[0], A.shape[1])
        threshold = self.step * self.lam.clamp_min(0)
        for _ in range(self.layers):
            x = soft_threshold(x - self.step * ((x @ A.T - y) @ A), threshold)
            yield x

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """1/2 ||A x - y||^2 + lam ||x||_1 of each row: [batch]."""
        residual = x @ self.dictionary.T - y
        return 0.5 * residual.square().sum(1) + self.lam * x.abs().sum(1)


class LISTA(_Unfolded):
    """x+ = soft(W y + S x, theta of the layer), with W, S and theta learned.

    Untrained it is ISTA: W = step A', S = I - step A'A, theta = step lam.

    Args:
        dictionary: A, [m, n]; starts W and S and is not kept.
        lam: strength of the l1 term that theta starts from.
        layers: number of steps.
        tied: one W and one S for all layers, as published; otherwise each layer has its own.

    Raises:
        ShapeError: a size or number out of range.
        DTypeError: the dictionary is not of a floating dtype.

    Reference: Gregor & LeCun 2010, "Learning Fast Approximations of Sparse Coding", algorithm 3.

    Example:
        >>> LISTA(torch.eye(2), lam=1.0, layers=3)(torch.tensor([[3.0, 0.5]])).shape
        torch.Size([1, 2])
    """

    def __init__(self, dictionary: Tensor, lam: float, layers: int = 16, tied: bool = True) -> None:
        super().__init__(dictionary, layers, None)
        A, n = dictionary.detach(), dictionary.shape[1]
        copies = 1 if tied else layers
        S = torch.eye(n, dtype=A.dtype) - self.step * (A.T @ A)
        self.W = nn.Parameter((self.step * A.T).repeat(copies, 1, 1))
        self.S = nn.Parameter(S.repeat(copies, 1, 1))
        theta = self.step * _strength(lam, A)
        self.theta = nn.Parameter(theta.repeat(layers, n))

    def iterates(self, y: Tensor) -> Iterator[Tensor]:
        """The codes after 1, 2, ..., ``layers`` steps."""
        self._check(y, self.W.shape[2])
        x = y.new_zeros(y.shape[0], self.S.shape[1])
        for layer in range(self.layers):
            at = min(layer, len(self.W) - 1)
            inner = y @ self.W[at].T + x @ self.S[at].T
            x = soft_threshold(inner, self.theta[layer].clamp_min(0))
            yield x


class IHT(_Unfolded):
    """x+ = H_k(x - step A'(A x - y)), for 1/2 ||A x - y||^2 with at most k non-zeros a row.

    H_k keeps the k largest magnitudes; gradients pass at what it keeps.

    Args:
        dictionary: A, [m, n]; becomes a parameter.
        k: non-zeros a row, in [1, n].
        layers: number of steps.
        step: in (0, 1 / ||A||^2], for which the objective does not rise; the default is the
            largest.

    Raises:
        ShapeError: a size or number out of range.
        DTypeError: the dictionary is not of a floating dtype.

    Reference: Blumensath & Davies 2009, "Iterative Hard Thresholding for Compressed Sensing".

    Example:
        >>> IHT(torch.eye(2), k=1, layers=50)(torch.tensor([[3.0, 0.5]])).round(decimals=3)
        tensor([[3., 0.]], grad_fn=<RoundBackward1>)
    """

    def __init__(
        self, dictionary: Tensor, k: int, layers: int = 16, step: float | None = None
    ) -> None:
        super().__init__(dictionary, layers, step)
        if type(k) is not int or not 1 <= k <= dictionary.shape[1]:
            raise ArgumentError(
                f"IHT got k={k}; a whole number in [1, {dictionary.shape[1]}] is needed"
            )
        self.k = k
        self.dictionary = nn.Parameter(dictionary.detach().clone())

    def iterates(self, y: Tensor) -> Iterator[Tensor]:
        """The codes after 1, 2, ..., ``layers`` steps."""
        A = self.dictionary
        self._check(y, A.shape[0])
        x = y.new_zeros(y.shape[0], A.shape[1])
        for _ in range(self.layers):
            x = hard_top_k(x - self.step * ((x @ A.T - y) @ A), self.k)
            yield x

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """1/2 ||A x - y||^2 of each row: [batch]."""
        return 0.5 * (x @ self.dictionary.T - y).square().sum(1)


def _strength(lam: float, like: Tensor) -> Tensor:
    if not (math.isfinite(lam) and lam >= 0.0):
        raise ArgumentError(f"lam={lam}; a finite number, not negative, is needed")
    return torch.tensor(lam, dtype=like.dtype)
