"""Lossless merging of ReLU neurons: no more of them than their contributions are independent.

Neuron j adds f_j = relu(X w_j + b_j) v_j^T to the outputs on the calibration data. Where some
combination sum_j beta_j f_j is zero, scaling every neuron by 1 - beta_j / beta_m, m the largest
|beta|, changes no output, makes neuron m zero, and no scale negative: activation patterns stay.

All of it happens on scales t >= 0 with sum_j t_j f_j fixed, from t = 1. The null space comes from
one SVD. After each step the neuron that went must keep scale 0: a Householder reflection turns
the basis so that one vector alone touches it, and that one is dropped. So the basis stays
orthonormal, and m neurons cost O(m^2) a step instead of an SVD.

Reference: Mishkin, Pilanci 2023, "Optimal sets and solution paths of ReLU networks".
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gossamer.errors import ArgumentError, DTypeError, ShapeError
from gossamer.pruning.nettrim import sequence


class MergedLayer(NamedTuple):
    """What merging made of one hidden layer.

    Attributes:
        scales: float64 [neurons], what each neuron is multiplied by; 0 for those that went.
        rank: independent contributions on the calibration data.
        error: the largest change of an output of the layer after it, relative to the largest
            output; rounding, unless fewer neurons than the rank were asked for.
    """

    scales: Tensor
    rank: int
    error: float

    @property
    def neurons(self) -> tuple[int, int]:
        """Neurons before and after."""
        return len(self.scales), int((self.scales > 0).sum())


class Merged(NamedTuple):
    """A model with merged neurons, and each hidden layer's result by the name of its Linear."""

    model: nn.Module
    layers: Mapping[str, MergedLayer]


def optimal_prune(
    model: nn.Module, inputs: Tensor, *, neurons: int | None = None, tol: float = 1e-12
) -> Merged:
    """Merge the hidden neurons of a ReLU network that calibration data cannot tell apart.

    Every Linear, ReLU, Linear in a row (dropout between does not matter) keeps at most as many
    hidden neurons as their contributions to the second Linear have rank; on the data, the outputs
    stay the same. With `neurons`, pruning goes on below the rank with the smallest error it finds.

    Args:
        model: an `nn.Sequential`, which may hold others; it is left as it is.
        inputs: calibration data [samples, ...].
        neurons: hidden neurons that may remain in each such layer, at least 1; those that are
            independent when None.
        tol: contributions count as dependent when a combination of them, each scaled to length
            1, is shorter than tol times the longest.

    Returns:
        A smaller copy, and what was merged. The scale of a neuron is shared between its weights
        on both sides, so that balanced weights stay balanced.

    Raises:
        DTypeError: model is no `nn.Sequential`.
        ShapeError: neurons is below 1.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(3, 50), nn.ReLU(), nn.Linear(50, 1))
        >>> x = torch.randn(10, 3)
        >>> merged = optimal_prune(model, x)
        >>> merged.model[0].out_features <= 10, merged.layers["0"].error < 1e-6
        (True, True)
    """
    if neurons is not None and neurons < 1:
        raise ArgumentError(f"optimal_prune got neurons={neurons}; a layer keeps at least 1")
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
            x = module(x)
        for mode, (_, module) in zip(modes, steps, strict=True):
            module.train(mode)
    return Merged(merged, results)


def merge_scales(
    fits: Tensor, *, neurons: int | None = None, tol: float = 1e-12
) -> tuple[Tensor, int]:
    """Scales t >= 0, few of them positive, with sum_j t_j f_j = sum_j f_j.

    Args:
        fits: [samples, neurons], the contribution f_j of each neuron; several outputs are stacked.
        neurons: how many may be positive; below the rank the sum changes, by little.
        tol: see `optimal_prune`.

    Returns:
        float64 [neurons], and the rank. At most rank scales are positive.

    Raises:
        DTypeError: fits is not floating.
        ShapeError: fits is not [samples, neurons].
        ArgumentError: fits is not finite.

    Example:
        >>> scales, rank = merge_scales(torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]]))
        >>> rank, int((scales > 0).sum())
        (2, 2)
    """
    if not fits.is_floating_point():
        raise DTypeError(f"merge_scales got fits of {fits.dtype}; floating numbers are needed")
    if fits.dim() != 2:
        raise ShapeError(f"merge_scales got fits {list(fits.shape)}; [samples, neurons] is needed")
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
    """Walk along the null space, basis [neurons, dimension], until it is used up."""
    while basis.shape[1]:
        direction = basis[:, 0]
        steps = torch.where(direction == 0, torch.inf, scales / direction.abs())
        gone = int(steps.argmin())
        scales = (scales - direction * (scales[gone] / direction[gone])).clamp(min=0)
        scales[gone] = 0
        # Scales that are zero by now stay so, however many fell at once.
        for neuron in ((scales == 0) & (basis != 0).any(1)).nonzero().flatten().tolist():
            basis = _fixed(basis, neuron)
    return scales


def _fixed(basis: Tensor, neuron: int) -> Tensor:
    """The part of a null space that leaves a neuron as it is."""
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
    """Remove the neuron whose loss the others can best make up for, by least squares.

    The combination of the others nearest to f_i has the coefficients P_ij / P_ii, P the inverse
    of the Gram matrix, and misses it by 1 / sqrt(P_ii); the neuron to go is its largest.
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
    if not len(keep):  # nothing contributes; one neuron stays, as it is
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
    """The Linear that reads the hidden neurons of a Linear, through a ReLU."""
    if not isinstance(steps[place][1], nn.Linear):
        return None
    following = (module for _, module in steps[place + 1 :])
    rest = (m for m in following if not isinstance(m, nn.Dropout | nn.Identity))
    if not isinstance(next(rest, None), nn.ReLU):
        return None
    second = next(rest, None)
    return second if isinstance(second, nn.Linear) else None
