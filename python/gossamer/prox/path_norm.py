"""The lp path norm of a shallow ReLU network, and two proximal steps for it.

    f(x) = sum_k v_k relu(<w_k, x> + b_k)        penalty = sum_k sum_i |v_k w_ki|^p

The penalty is invariant to rescaling a neuron, (v, w, b) -> (v / s, s w, s b). For small enough
0 < p < 1 its minimisers are the sparsest networks that fit the data. Both proximal steps use its
majoriser at the current products y = v w,

    |z|^p  <=  p |y|^(p - 1) |z| + (1 - p) |y|^p,

which is a weighted l1 norm of the products. `joint_prox_` minimises it exactly over v and w
together. `reweighted_split_` shrinks the products and splits them evenly again, as in the paper.

Reference:
    Nakhleh & Nowak 2025 (arXiv 2505.21791).
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gossamer.backend import check_array
from gossamer.backend import prox as kernels
from gossamer.errors import ArgumentError, DTypeError, ShapeError
from gossamer.prox.checks import check_own_places, is_number

__all__ = ["balance_", "joint_prox_", "path_norm", "path_thresholds", "reweighted_split_"]

Array = Tensor | npt.NDArray[Any]


def path_norm(v: Tensor, w: Tensor, p: float) -> float:
    """The sum of `|v_k w_ki|^p`; for p = 0 the number of non-zero products.

    Args:
        v: [neurons], the outgoing weights.
        w: [neurons, inputs], the incoming weights that are penalised.
        p: the exponent, in [0, 1].

    Returns:
        The penalty, summed in float64.

    Raises:
        ArgumentError: p is outside [0, 1].
        ShapeError: the shapes of v and w do not match.
        DTypeError: p is not a number, or v or w is not a torch tensor of real numbers.

    Example:
        >>> path_norm(torch.tensor([2.0, 0.0]), torch.tensor([[-2.0, 0.0], [1.0, 1.0]]), p=0.5)
        2.0
    """
    _check_p(p, zero=True)
    _check_shapes(v, w)
    products = (v.detach()[:, None].double() * w.detach().double()).abs()
    alive = products[products != 0]  # a NaN is not zero
    return float(alive.pow(p).sum())


def path_thresholds(products: Tensor, p: float, step: float, eps: float = 0.0) -> Tensor:
    """The weights of the majoriser, `step * p * (|products| + eps)^(p - 1)`.

    Args:
        products: [neurons, inputs], `v[:, None] * w` before the optimizer's step (a separate
            tensor, not a view of weights that the step changes).
        p: the exponent, in (0, 1].
        step: learning rate times the penalty's weight, at least 0.
        eps: at least 0. With eps = 0 and p < 1, a product of 0 has an infinite threshold and stays
            0; a positive eps lets it grow again.

    Returns:
        The thresholds [neurons, inputs], in the dtype of the products.

    Raises:
        ArgumentError: p, step or eps is out of range.
        DTypeError: p, step or eps is not a number.

    Example:
        >>> path_thresholds(torch.tensor([[0.25, 0.0]]), p=0.5, step=0.1)
        tensor([[0.1000,    inf]])
    """
    _check_p(p)
    _check_number(step, "step")
    _check_number(eps, "eps")
    if not 0 <= step < math.inf:
        raise ArgumentError(f"step is {step}; a finite number >= 0 is needed")
    if not 0 <= eps < math.inf:
        raise ArgumentError(f"eps is {eps}; a finite number >= 0 is needed")
    if step == 0 or p == 1:  # not 0 * inf
        return torch.full_like(products, step)
    return products.abs().add_(eps).pow_(p - 1).mul_(step * p)


def joint_prox_(v: Array, w: Array, thresholds: Array) -> None:
    """Move every neuron to the exact joint minimum of its majoriser, in place.

    For each neuron k, (v_k, w_k) becomes the minimiser (x, y) of

        1/2 (x - v_k)^2 + 1/2 ||y - w_k||^2 + |x| sum_i thresholds_ki |y_i|.

    The problem is not convex. For x >= 0 the optimal y is soft(w, thresholds x). This leaves a
    function of x alone whose derivative is convex and piecewise linear. The function has at most
    one local minimum above 0, which is compared with x = 0, where w is unchanged.

    A NaN in a neuron or in its thresholds makes the whole neuron NaN. Zeros are +0.0. The result
    has the same bits for any number of threads.

    Args:
        v: [neurons], float32 or float64, a torch CPU tensor or a NumPy array, any stride.
        w: [neurons, inputs], in v's dtype.
        thresholds: in w's shape and dtype, at least 0; an infinite one keeps v or the entry at 0.
            They include the step size, which v and w share.

    Raises:
        ShapeError: the shapes do not match, or a tensor is expanded.
        ArgumentError: a threshold is negative, or an array is read-only.
        DTypeError: the dtypes differ, or are not float32 or float64.

    Example:
        >>> v, w = torch.tensor([2.0, 0.1]), torch.tensor([[1.0, 0.2], [1.0, 1.0]])
        >>> joint_prox_(v, w, torch.full((2, 2), 0.25))
        >>> v, w
        (tensor([1.8667, 0.0000]), tensor([[0.5333, 0.0000], [1.0000, 1.0000]]))
    """
    for array, who in ((v, "v"), (w, "w")):
        if isinstance(array, Tensor | np.ndarray):  # the kernel rejects other types
            check_own_places(array, who)
    kernels.path_norm(*(a.detach() if isinstance(a, Tensor) else a for a in (v, w, thresholds)))


def reweighted_split_(v: Tensor, w: Tensor, thresholds: Tensor, bias: Tensor | None = None) -> None:
    """Shrink the products `v_k w_ki` by their thresholds, and split them evenly, in place.

    With `u = soft(v w, thresholds)`, the new weights have `|v| = sqrt(||u||)` and
    `|w| = |u| / sqrt(||u||)`, with unchanged signs. For one input and p = 1 this is PathProx. A
    neuron whose products are all 0 becomes 0, including its bias.

    Args:
        v: [neurons].
        w: [neurons, inputs].
        thresholds: in w's shape, at least 0.
        bias: [neurons], for networks with one input and an unpenalised bias; it is scaled by the
            same factor as w, which keeps the neuron's kink in place.

    Raises:
        ShapeError: the shapes do not match, or a bias is given with more than one input.
        DTypeError: v or w is not a torch tensor of real numbers.

    Reference:
        Nakhleh & Nowak 2025 (arXiv 2505.21791); Yang et al. 2022, "PathProx".

    Example:
        >>> v, w, bias = torch.tensor([0.1]), torch.tensor([[2.0]]), torch.tensor([-1.0])
        >>> reweighted_split_(v, w, torch.zeros(1, 1), bias)
        >>> float(v), float(w), float(-bias / w)  # the kink was at 0.5
        (0.447..., 0.447..., 0.5)
    """
    _check_shapes(v, w)
    if thresholds.shape != w.shape:
        raise ShapeError(
            f"thresholds have shape {list(thresholds.shape)} and w {list(w.shape)}; one threshold "
            "per entry of w is needed"
        )
    if bias is not None and (w.shape[1] != 1 or bias.shape != v.shape):
        raise ShapeError(
            f"bias has shape {list(bias.shape)} and w {list(w.shape)}; a separate bias needs w "
            "with one input: otherwise put it inside w, as the weight of a constant input 1"
        )
    with torch.no_grad():
        products = v[:, None] * w
        sizes = products.abs().sub_(thresholds)
        sizes = torch.where(products == 0, products.abs(), sizes).clamp_min_(0)
        root = sizes.norm(dim=1).sqrt_()
        split = torch.where(root[:, None] == 0, sizes, sizes / root[:, None])
        if bias is not None:
            bias.mul_(torch.where(w == 0, split, split / w.abs())[:, 0])
        w.copy_(split.copysign_(w)).add_(0.0)  # -0 + 0 = +0
        v.copy_(root.copysign_(v)).add_(0.0)


def balance_(v: Tensor, w: Tensor, bias: Tensor | None = None) -> None:
    """Rescale neurons to `|v_k| = ||(w_k, b_k)||`, in place; network and penalty are unchanged.

    A neuron with v_k = 0 or (w_k, b_k) = 0 is unchanged.

    Args:
        v: [neurons].
        w: [neurons, inputs].
        bias: [neurons], if it is not inside w. It is scaled with w and counts in the norm:
            otherwise a kink far from 0 would give a huge bias and a tiny v.

    Raises:
        ShapeError: the shapes of v and w do not match.
        DTypeError: v or w is not a torch tensor of real numbers.

    Example:
        >>> v, w = torch.tensor([0.5]), torch.tensor([[3.0, 4.0]])
        >>> balance_(v, w)
        >>> v * w
        tensor([[1.5000, 2.0000]])
    """
    _check_shapes(v, w)
    with torch.no_grad():
        size = w.norm(dim=1)
        if bias is not None:
            size = torch.hypot(size, bias)
        factor = (v.abs() / size).sqrt_()
        factor = torch.where((factor > 0) & (factor < math.inf), factor, 1.0)
        v.div_(factor)
        w.mul_(factor[:, None])
        if bias is not None:
            bias.mul_(factor)


def _check_p(p: float, zero: bool = False) -> None:
    _check_number(p, "p")
    if not (0 < p <= 1 or (zero and p == 0)):
        raise ArgumentError(f"p is {p}; a number in {'[' if zero else '('}0, 1] is needed")


def _check_number(value: object, name: str) -> None:
    if not is_number(value):
        raise DTypeError(f"{name} is {value!r:.80}; a number is needed")


def _check_shapes(v: Tensor, w: Tensor) -> None:
    for given, who in ((v, "v"), (w, "w")):
        check_array(given, who, device=True)
    if v.ndim != 1 or w.ndim != 2 or len(v) != len(w):
        raise ShapeError(
            f"v has shape {list(v.shape)} and w {list(w.shape)}; [neurons] and "
            "[neurons, inputs] are needed"
        )
