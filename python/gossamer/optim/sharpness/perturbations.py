"""Sharpness-aware minimisation: the second pass is where the loss rises most within a radius."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from gossamer import backend
from gossamer.arguments import NotNegative, Positive, Share, check
from gossamer.errors import ArgumentError
from gossamer.nn import MaskedLayer
from gossamer.optim.sharpness.attached import By, Sharpness
from gossamer.weight import SparseWeight

__all__ = ["ASAM", "FSAM", "SAM", "SAMON", "AdaSAP", "guarded", "scaled"]


class SAM(Sharpness):
    """Sharpness-aware minimisation: gradients at w + rho g / ||g||.

    The norm is over all parameters. Sparse weights are moved at their kept entries.

    Args:
        rho: radius, at least 0; 0 is the optimizer alone.
        each_process: see `Sharpness`.

    Raises:
        ArgumentError: rho is negative or not finite.

    Reference:
        Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving Generalization",
        equations 2 and 3.

    Example:
        >>> model = nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> SAM(rho=0.05).attach(model, optimizer)
        >>> x = torch.randn(8, 4)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(x).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure) >= 0
        tensor(True)
    """

    def __init__(self, rho: NotNegative = 0.05, each_process: bool = False) -> None:
        super().__init__(each_process)
        check(SAM.__init__, locals())
        self.rho = rho

    def is_off(self) -> bool:
        """Whether rho is 0."""
        return self.rho == 0

    def offsets(self, gradients: By) -> By:
        """Return rho g / ||g||."""
        return scaled(gradients, self.rho, gradients)


class ASAM(SAM):
    """Adaptive SAM: moves by rho T^2 g / ||T g||, T = |w| + eta for weights and 1 for the others.

    The radius does not depend on the scale of a weight. Weights are the parameters whose names have
    "weight" in them.

    Args:
        rho: radius; 0 is the optimizer alone.
        eta: added to the magnitudes of weights.
        each_process: see `Sharpness`.

    Reference:
        Kwon et al. 2021, "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning
        of Deep Neural Networks", algorithm 1 with the element-wise operator.
    """

    def __init__(
        self, rho: NotNegative = 0.5, eta: NotNegative = 0.01, each_process: bool = False
    ) -> None:
        super().__init__(rho, each_process)
        check(ASAM.__init__, locals())
        self.eta = eta

    def offsets(self, gradients: By) -> By:
        """Return rho T^2 g / ||T g||."""
        weights = {p for name, _, p in self.named() if "weight" in name}
        scales = {p: p.detach().abs() + self.eta for p in gradients if p in weights}
        scaled_gradients = {p: g * scales[p] if p in scales else g for p, g in gradients.items()}
        along = {p: g * scales[p] if p in scales else g for p, g in scaled_gradients.items()}
        return scaled(along, self.rho, scaled_gradients)


class SAMON(SAM):
    """SAM that moves the parameters of normalisation layers only; the norm is over them alone.

    Normalisation layers are the modules whose class has "norm" in its name.

    Args:
        rho: radius; 0 is the optimizer alone.
        each_process: see `Sharpness`.

    Reference:
        Mueller et al. 2023, "Normalization Layers Are All That Sharpness-Aware Minimization Needs".
    """

    def offsets(self, gradients: By) -> By:
        """Return rho g / ||g|| of the normalisation layers."""
        norms = {p for _, module, p in self.named() if _is_norm(module)}
        chosen = {p: g for p, g in gradients.items() if p in norms}
        if not chosen:
            raise ArgumentError(
                "SAMON found no normalisation layer with a gradient; use SAM for this model"
            )
        return scaled(chosen, self.rho, chosen)


class FSAM(SAM):
    """SAM that moves the entries with the largest squared gradients only: a Fisher mask.

    The mask keeps a share of all entries of the weights. Biases, embeddings and normalisation
    layers are always moved. The norm is over all gradients.

    Args:
        rho: radius; 0 is the optimizer alone.
        keep: moved share of the entries of the weights, in [0, 1]; entries as large as the last
            one are moved too.
        each_process: see `Sharpness`.

    Reference:
        Zhong et al. 2022, "Improving Sharpness-Aware Minimization with Fisher Mask for Better
        Generalization on Language Models".
    """

    def __init__(
        self, rho: NotNegative = 0.05, keep: Share = 0.1, each_process: bool = False
    ) -> None:
        super().__init__(rho, each_process)
        check(FSAM.__init__, locals())
        self.keep = keep

    def offsets(self, gradients: By) -> By:
        """Return rho M g / ||g||, M the Fisher mask."""
        masked = [
            p
            for name, module, p in self.named()
            if p in gradients and "weight" in name and not _always_moved(module)
        ]
        moved = scaled(gradients, self.rho, gradients)
        total = sum(p.numel() for p in masked)
        count = round(total * self.keep)
        if not masked or count == total:
            return moved
        squares = torch.cat([gradients[p].reshape(-1).float().square() for p in masked])
        # The smallest of the `count` largest.
        bar = squares.kthvalue(total - count + 1).values if count else squares.new_tensor(torch.inf)
        masks = {p: gradients[p].float().square() >= bar for p in masked}
        return {p: o * masks[p] if p in masks else o for p, o in moved.items()}


class AdaSAP(Sharpness):
    """Adaptive sharpness-aware pruning: unimportant rows are moved further, so that they can go.

    A weight's row i (an output unit or channel) is moved by rho_i T^2 g / ||T g||, T = |w| + eta,
    with rho_i between `rho_most` for the row of the smallest norm in its layer and `rho_least` for
    that of the largest. Other parameters are not moved. Train with it, prune whole rows, and remove
    them with `gossamer.shrink`.

    Args:
        rho_least: radius of the most important row.
        rho_most: radius of the least important row.
        eta: added to the magnitudes.
        each_process: see `Sharpness`.

    Reference:
        Bair et al. 2024, "Adaptive Sharpness-Aware Pruning for Robust Sparse Networks".
    """

    def __init__(
        self,
        rho_least: NotNegative = 0.01,
        rho_most: NotNegative = 2.0,
        eta: Positive = 0.01,
        each_process: bool = False,
    ) -> None:
        super().__init__(each_process)
        check(AdaSAP.__init__, locals())
        if rho_least > rho_most:
            raise ArgumentError(
                f"AdaSAP got rho_least={rho_least} and rho_most={rho_most}; give the smaller "
                "radius as rho_least"
            )
        self.rho_least, self.rho_most, self.eta = rho_least, rho_most, eta

    def is_off(self) -> bool:
        """Whether both radii are 0."""
        return self.rho_most == 0

    def offsets(self, gradients: By) -> By:
        """Return rho_i T^2 g / ||T g||."""
        along: dict[nn.Parameter, Tensor] = {}
        scaled_gradients: dict[nn.Parameter, Tensor] = {}
        for _, module, p in self.named():
            if p not in gradients or (rows := _rows(module, p)) is None:
                continue
            importance = p.new_zeros(int(rows.max()) + 1 if len(rows) else 0)
            importance.index_add_(0, rows, p.detach().reshape(-1).square()).sqrt_()
            scale = p.detach().abs() + self.eta
            scaled_gradients[p] = gradients[p] * scale
            radius = self._radii(importance)[rows].view_as(p)
            along[p] = scaled_gradients[p] * scale * radius
        return scaled(along, 1.0, scaled_gradients)

    def _radii(self, importance: Tensor) -> Tensor:
        if not len(importance):
            return importance
        least, most = importance.min(), importance.max()
        share = (importance - least) / (most - least).clamp_min(torch.finfo(most.dtype).tiny)
        return self.rho_most - share * (self.rho_most - self.rho_least)


def scaled(along: By, radius: float, of: By) -> By:
    """Return radius * along / (||of|| + 1e-12), or zeros where the norm is not finite."""
    if not of:
        return {}
    norm = get_total_norm(of.values())
    return guarded(along, radius / (norm + 1e-12), norm)


def guarded(along: By, factor: Tensor | float, norm: Tensor) -> By:
    """Return factor * along, or zeros where a norm is not finite."""
    is_finite = torch.isfinite(norm)
    return {
        p: torch.where(is_finite, (g * factor).to(g.dtype), torch.zeros((), dtype=g.dtype))
        for p, g in along.items()
    }


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _always_moved(module: nn.Module) -> bool:
    return _is_norm(module) or isinstance(module, nn.Embedding | nn.EmbeddingBag)


def _rows(module: nn.Module, parameter: nn.Parameter) -> Tensor | None:
    """Return the row of each entry of a weight, int64 [numel]; None if it is no weight."""
    if isinstance(module, SparseWeight):
        return backend.coordinates(module.structure) // int(module.shape[1])
    of_layer = isinstance(module, MaskedLayer | nn.Linear | nn.modules.conv._ConvNd)
    if not of_layer or parameter.ndim < 2:
        return None
    rows = torch.arange(len(parameter), device=parameter.device)
    return rows.repeat_interleave(parameter[0].numel())
