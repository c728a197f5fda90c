"""Losses and regularisers of sparse representations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer.backend import check_array
from gossamer.backend.arrays import FLOATING
from gossamer.codes.core import Code
from gossamer.codes.functions import prefix_errors
from gossamer.errors import ArgumentError, ShapeError


def hierarchical_loss(
    x: Tensor,
    code: Code,
    dictionary: Tensor,
    bias: Tensor | None = None,
    levels: Sequence[int] | None = None,
) -> Tensor:
    """Return the HierarchicalTopK loss: the mean of ||x - x_j||^2 over j in `levels` and the batch.

    x_j is the reconstruction from the first j latents of the code, so that one dictionary serves
    every budget of latents. Forward and backward cost O(k d) per row.

    Args:
        x: [batch, d].
        code: [batch, k], in descending order.
        dictionary: [latents, d].
        bias: [d], or None.
        levels: numbers of latents in [1, k]; None is all of them, (k,) is plain TopK.

    Returns:
        A scalar, differentiable in x, the values, the dictionary and the bias.

    Raises:
        ArgumentError: `levels` is empty, or a level is not an integer in [1, k].

    Reference:
        Balagansky et al. 2025, "Train One Sparse Autoencoder Across Multiple Sparsity
        Budgets".

    Example:
        >>> code = Code(torch.tensor([[3.0, 2.0]]), torch.tensor([[0, 1]]))
        >>> float(hierarchical_loss(torch.tensor([[3.0, 2.0]]), code, torch.eye(2)))
        2.0
    """
    errors, _ = prefix_errors(x, code, dictionary, bias)
    return at_levels(errors, levels).mean()


def check_levels(levels: Sequence[int], k: int) -> tuple[int, ...]:
    """Return the levels, sorted and without duplicates.

    Raises:
        ArgumentError: `levels` is empty, or a level is not an integer in [1, k].
    """
    found: tuple[int, ...] = ()
    if isinstance(levels, Sequence) and all(type(j) is int for j in levels):
        found = tuple(sorted(set(levels)))
    if not found or any(not 1 <= j <= k for j in found):
        raise ArgumentError(
            f"levels are {levels!r:.80}; at least one integer is needed, each in [1, {k}]"
        )
    return found


def at_levels(errors: Tensor, levels: Sequence[int] | None) -> Tensor:
    """Return the columns `levels` of the prefix errors [batch, k]; all of them for None."""
    if levels is None:
        return errors
    columns = [j - 1 for j in check_levels(levels, errors.shape[1])]
    return errors[:, columns]


def flops_penalty(activations: Tensor) -> Tensor:
    """Return sum_j (mean_i |a_ij|)^2, a smooth surrogate of the cost of sparse dot products.

    That cost is sum_j p_j^2, where p_j is the share of rows in which column j is active. For a
    given number of active entries it is least when all columns are active equally often. So the
    penalty balances the columns, where an l1 penalty only shrinks them. The gradient is
    2 mean_i|a_ij| sign(a_ij) / rows, and 0 at zeros. The mean over a small batch is a biased
    estimate.

    Args:
        activations: [rows, d], after a ReLU or a soft threshold.

    Returns:
        A scalar, differentiable.

    Reference:
        Paria et al. 2020, "Minimizing FLOPs to Learn Efficient Sparse Representations".

    Example:
        >>> float(flops_penalty(torch.tensor([[1.0, 0.0], [0.0, -3.0]])))
        2.5
    """
    return _matrix(activations, "flops_penalty").abs().mean(0).square().sum()


def activation_imbalance(activations: Tensor) -> float:
    """Return how unevenly columns are active: d sum_j p_j^2 / (sum_j p_j)^2.

    p_j is the share of rows in which column j is active.

    Args:
        activations: [rows, d].

    Returns:
        1 when all columns are active equally often, d when only one column is active, NaN when
        every entry is zero.

    Reference:
        Paria et al. 2020, "Minimizing FLOPs to Learn Efficient Sparse Representations" (R_sub).

    Example:
        >>> activation_imbalance(torch.tensor([[1.0, 0.0], [0.0, -3.0]]))
        1.0
    """
    share = (_matrix(activations, "activation_imbalance").detach() != 0).double().mean(0)
    return float(len(share) * share.square().sum() / share.sum().square())


TARGETS = ("binary", "zero_one", "ternary")


def cauchy_schwarz(x: Tensor, target: str = "binary", *, normalised: bool = True) -> Tensor:
    """Return a Cauchy-Schwarz gap that is 0 only if x takes few values, up to a scale.

    =========  ====================  ==================================  ======
    target     zero on               gap                                 degree
    =========  ====================  ==================================  ======
    binary     {-a, a}               N sum x^4 - (sum x^2)^2             4
    zero_one   {0, a}                sum x^2 sum x^4 - (sum x^3)^2       6
    ternary    {-a, 0, a}            sum x^2 sum x^6 - (sum x^4)^2       8
    =========  ====================  ==================================  ======

    The scale a is free; N is the number of entries. Each gap is ||g||^2 ||h||^2 - <g, h>^2 with
    (g, h) = (1, x^2), (x, x^2), (x, x^3). It is computed as ||g||^2 ||h - c g||^2 with
    c = <g, h> / ||g||^2, which avoids cancellation. A gap may have stationary points outside the
    target set, and it is 0 for the all-zero vector.

    Args:
        x: any shape, taken as one vector, of a floating dtype.
        target: "binary", "zero_one" or "ternary".
        normalised: divide by ||g||^2 ||h||^2; the result is in [0, 1] and does not depend on the
            scale of x.

    Returns:
        A differentiable scalar; an all-zero x gives 0 with gradient 0.

    Raises:
        ShapeError: x is empty.
        ArgumentError: the target is unknown.
        DTypeError: x is not of a floating dtype.

    Reference:
        Taner, Wang, Studer 2025, "Cauchy-Schwarz Regularizers".

    Example:
        >>> x = torch.tensor([2.0, 0.0, -2.0])
        >>> [round(float(cauchy_schwarz(x, target)), 3) for target in TARGETS]
        [0.333, 1.0, 0.0]
    """
    check_array(x, "cauchy_schwarz: x", dtypes=FLOATING, filled=True)
    if target not in TARGETS:
        raise ArgumentError(
            f"cauchy_schwarz got target={target!r:.40}; choose one of {', '.join(TARGETS)}"
        )
    flat = x.reshape(-1)
    scale = flat.detach().abs().amax()
    if not normalised or scale == 0:
        scale = torch.ones_like(scale)
    # The normalised gap does not depend on the scale, and high powers of small numbers underflow.
    y = flat / scale
    g = torch.ones_like(y) if target == "binary" else y
    h = y**3 if target == "ternary" else y**2
    g_norm, h_norm = g.square().sum(), h.square().sum()
    if h_norm == 0:
        return flat.sum() * 0.0
    rest = (h - (g * h).sum() / g_norm * g).square().sum()
    return rest / h_norm if normalised else g_norm * rest


def explained_variance(x: Tensor, reconstruction: Tensor) -> float:
    """Return 1 - ||x - reconstruction||^2 / ||x - mean(x)||^2, where mean is over the rows.

    Args:
        x: [batch, d].
        reconstruction: [batch, d].

    Returns:
        1 for a perfect reconstruction, 0 for the mean, NaN when all rows are equal.

    Example:
        >>> explained_variance(torch.eye(2), torch.full((2, 2), 0.5))
        0.0
    """
    for given, name in ((x, "x"), (reconstruction, "reconstruction")):
        check_array(
            given, f"explained_variance: {name}", rank=2, dtypes=FLOATING, filled=True, device=True
        )
    if x.shape != reconstruction.shape:
        raise ShapeError(
            f"explained_variance got x {list(x.shape)} and reconstruction "
            f"{list(reconstruction.shape)}; one shape is needed"
        )
    x, reconstruction = x.detach().double(), reconstruction.detach().double()
    return 1.0 - float((x - reconstruction).square().sum() / (x - x.mean(0)).square().sum())


def _matrix(x: Tensor, who: str) -> Tensor:
    check_array(x, f"{who}: activations", rank=2, dtypes=FLOATING, filled=True)
    return x
