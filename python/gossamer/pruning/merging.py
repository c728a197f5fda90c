"""Lossless merging of ReLU neurons, down to the rank of their contributions.

Neuron j adds f_j = relu(X w_j + b_j) v_j^T to the outputs on the calibration data. If a combination
sum_j beta_j f_j is zero, scaling every neuron j by 1 - beta_j / beta_i, where |beta_i| is largest,
changes no output and removes neuron i. No scale becomes negative, so activation patterns stay.

The algorithm changes scales t >= 0, from t = 1, and keeps sum_j t_j f_j fixed. One SVD gives the
null space. A removed neuron must keep scale 0: a Householder reflection turns the basis so that
one vector alone contains this neuron, and drops that vector. The basis stays orthonormal, and a
step costs O(neurons^2) instead of an SVD.

Reference:
    Mishkin, Pilanci 2023, "Optimal sets and solution paths of ReLU networks".
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gossamer.arguments import Count, NotNegative, check
from gossamer.backend import check_array
from gossamer.backend.arrays import FLOATING
from gossamer.errors import ArgumentError
from gossamer.pruning.calibration import calibrated, step_of
from gossamer.pruning.nettrim import sequence


class MergedLayer(NamedTuple):
    """Result of merging one hidden layer.

    Attributes:
        scales: float64 [neurons], the factor of each neuron; 0 for removed ones.
        rank: number of independent contributions on the calibration data.
        error: largest change of an output of the next layer, relative to its largest output; only
            rounding, unless fewer neurons than the rank were requested.
    """

    scales: Tensor
    rank: int
    error: float

    @property
    def neurons(self) -> tuple[int, int]:
        """Number of neurons before and after."""
        return len(self.scales), int((self.scales > 0).sum())


class Merged(NamedTuple):
    """A model with merged neurons, and the result per hidden layer by the name of its Linear."""

    model: nn.Module
    layers: Mapping[str, MergedLayer]


def optimal_prune(
    model: nn.Module, inputs: Tensor, *, neurons: Count | None = None, tol: NotNegative = 1e-12
) -> Merged:
    """Merge the hidden neurons of a ReLU network that are dependent on calibration data.

    In every sequence Linear, ReLU, Linear (a dropout between is ignored), at most as many hidden
    neurons remain as the rank of their contributions to the second Linear. The outputs on the data
    stay the same. With `neurons`, greedy pruning continues below the rank, with the least error.

    Args:
        model: an `nn.Sequential`, possibly nested; it does not change.
        inputs: calibration data [samples, ...].
        neurons: largest number of hidden neurons per layer, at least 1; None is the rank.
        tol: a combination of contributions, each scaled to length 1, counts as zero when it is
            shorter than tol times the longest.

    Returns:
        A smaller copy, and the result per layer. A neuron's scale is split between its input and
        output weights, so that balanced weights stay balanced.

    Raises:
        DTypeError: the model is not an `nn.Sequential`.
        ArgumentError: `neurons` is below 1.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(3, 50), nn.ReLU(), nn.Linear(50, 1))
        >>> x = torch.randn(10, 3)
        >>> merged = optimal_prune(model, x)
        >>> merged.model[0].out_features <= 10, merged.layers["0"].error < 1e-6
        (True, True)
    """
    check(optimal_prune, locals())
    calibrated(inputs, "optimal_prune")
    merged = copy.deepcopy(model)
    steps = sequence(merged, "optimal_prune")
    modes = [module.training for _, module in steps]
    results: dict[str, MergedLayer] = {}
    with torch.no_grad():
        x = inputs
        for place, (name, module) in enumerate(steps):
            module.eval()
            second = _partner(steps, place)
            if second is not None:
                results[name] = _merge(module, second, x, neurons, tol)  # type: ignore[arg-type]
            x = step_of(module, x, name, "optimal_prune")
        for mode, (_, module) in zip(modes, steps, strict=True):
            module.train(mode)
    return Merged(merged, results)


def merge_scales(
    fits: Tensor, *, neurons: Count | None = None, tol: NotNegative = 1e-12
) -> tuple[Tensor, int]:
    """Return scales t >= 0 with sum_j t_j f_j = sum_j f_j, of which few are positive.

    Args:
        fits: [samples, neurons], the contribution f_j of each neuron; several outputs are stacked.
        neurons: largest number of positive scales; below the rank the sum changes slightly.
        tol: see `optimal_prune`.

    Returns:
        The scales, float64 [neurons], and the rank. At most rank scales are positive.

    Raises:
        DTypeError: `fits` is not floating.
        ShapeError: `fits` is not [samples, neurons].
        ArgumentError: `fits` is not finite.

    Example:
        >>> scales, rank = merge_scales(torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]]))
        >>> rank, int((scales > 0).sum())
        (2, 2)
    """
    check(merge_scales, locals())
    check_array(fits, "merge_scales: fits", rank=2, dtypes=FLOATING, device=True)
    if not bool(fits.isfinite().all()):
        raise ArgumentError(
            "merge_scales got fits with infinity or NaN; values without infinity or NaN are needed"
        )
    fits = fits.detach().double()
    lengths = fits.norm(dim=0)
    alive = (lengths > 0).nonzero().flatten()
    scales = torch.zeros_like(lengths)
    if not len(alive):
        return scales, 0
    units = fits[:, alive] / lengths[alive]
    if len(units) > len(alive):
        units = torch.linalg.qr(units, mode="r").R
    _, sizes, right = torch.linalg.svd(units, full_matrices=True)
    rank = int((sizes > tol * sizes[0]).sum())
    own = _without_dependent(lengths[alive], right[rank:].T.contiguous())
    while neurons is not None and int((own > 0).sum()) > neurons:
        own = _without_least(units, own)
    scales[alive] = own / lengths[alive]
    return scales, rank


def _without_dependent(scales: Tensor, basis: Tensor) -> Tensor:
    """Move the scales along the null space, basis [neurons, dimension], until it is empty."""
    while basis.shape[1]:
        direction = basis[:, 0]
        steps = torch.where(direction == 0, torch.inf, scales / direction.abs())
        gone = int(steps.argmin())
        scales = (scales - direction * (scales[gone] / direction[gone])).clamp(min=0)
        scales[gone] = 0
        # Every scale that is zero now stays zero; several may reach it in one step.
        for neuron in ((scales == 0) & (basis != 0).any(1)).nonzero().flatten().tolist():
            basis = _fixed(basis, neuron)
    return scales


def _fixed(basis: Tensor, neuron: int) -> Tensor:
    """Return the part of a null space that does not change a neuron."""
    row = basis[neuron]
    length = row.norm()
    if float(length) == 0:
        return basis
    reflector = row / length
    reflector[0] += torch.ones(()).to(row).copysign(row[0])
    reflector /= reflector.norm()
    basis = (basis - 2 * torch.outer(basis @ reflector, reflector))[:, 1:]
    basis[neuron] = 0
    return basis


def _without_least(units: Tensor, scales: Tensor) -> Tensor:
    """Remove the neuron that the others replace best, by least squares.

    Let P be the inverse of the Gram matrix. The combination of the other neurons nearest to f_i has
    the coefficients P_ij / P_ii and the distance 1 / sqrt(P_ii). The neuron with the largest
    coefficient of the chosen combination is removed.
    """
    left = (scales > 0).nonzero().flatten()
    fits = units[:, left] * scales[left]
    root = torch.linalg.qr(fits, mode="r").R
    inverse = torch.linalg.solve_triangular(root, torch.eye(len(left)).to(root), upper=True)
    gram = inverse @ inverse.T
    beta = gram / gram.diagonal()  # column i: the combination of length 1 / sqrt(P_ii)
    largest = beta.abs().amax(0)
    best = int((gram.diagonal().rsqrt() / largest).argmin())
    direction = beta[:, best]
    gone = int(direction.abs().argmax())
    shrunk = (1 - direction / direction[gone]).clamp(min=0)
    shrunk[gone] = 0
    scales = scales.clone()
    scales[left] *= shrunk
    return scales


def _merge(
    first: nn.Linear, second: nn.Linear, x: Tensor, neurons: int | None, tol: float
) -> MergedLayer:
    hidden = first(x).flatten(0, -2).relu().double()  # [samples, neurons]
    fits = hidden[:, None, :] * second.weight.double()  # [samples, outputs, neurons]
    scales, rank = merge_scales(fits.flatten(0, 1), neurons=neurons, tol=tol)
    change = float((fits @ (scales - 1)).abs().max()) if fits.numel() else 0.0
    largest = float(second(hidden.to(x.dtype)).abs().max()) if len(hidden) else 0.0
    keep = (scales > 0).nonzero().flatten()
    if not len(keep):  # nothing contributes; one neuron is kept unchanged
        keep = torch.zeros(1, dtype=torch.int64, device=scales.device)
        roots = torch.ones(1, dtype=scales.dtype, device=scales.device)
    else:
        roots = scales[keep].sqrt()
    roots = roots.to(first.weight)
    first.weight = nn.Parameter(first.weight[keep] * roots[:, None], first.weight.requires_grad)
    if first.bias is not None:
        first.bias = nn.Parameter(first.bias[keep] * roots, first.bias.requires_grad)
    second.weight = nn.Parameter(second.weight[:, keep] * roots, second.weight.requires_grad)
    first.out_features = second.in_features = len(keep)
    return MergedLayer(scales, rank, change / largest if largest else change)


def _partner(steps: list[tuple[str, nn.Module]], place: int) -> nn.Linear | None:
    """Return the Linear that reads the hidden neurons of a Linear through a ReLU, or None."""
    if not isinstance(steps[place][1], nn.Linear):
        return None
    following = (module for _, module in steps[place + 1 :])
    rest = (m for m in following if not isinstance(m, nn.Dropout | nn.Identity))
    if not isinstance(next(rest, None), nn.ReLU):
        return None
    second = next(rest, None)
    return second if isinstance(second, nn.Linear) else None
