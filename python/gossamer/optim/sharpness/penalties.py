"""Penalties on the norm of the gradient, computed by differences of gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from gossamer.arguments import NotNegative, Positive, check
from gossamer.errors import RecipeError
from gossamer.optim.sharpness.attached import By, Sharpness
from gossamer.optim.sharpness.perturbations import guarded, scaled

__all__ = ["GAM", "GradientPenalty"]


class GradientPenalty(Sharpness):
    """Gradient regularisation: adds gamma/2 ||grad L||^2 to the loss, by a finite difference.

    The gradient is g + gamma (grad L(w + eps g) - g) / eps. With gamma = eps it is that of SAM
    without normalisation.

    Args:
        gamma: weight of the penalty; 0 is the optimizer alone.
        eps: step of the difference, above 0: upwards, which is the direction that trains best.
        each_process: see `Sharpness`.

    Reference:
        Karakida et al. 2023, "Understanding Gradient Regularization in Deep Learning: Efficient
        Finite-Difference Computation and Implicit Bias", forward difference.
    """

    def __init__(
        self, gamma: NotNegative = 0.01, eps: Positive = 0.05, each_process: bool = False
    ) -> None:
        super().__init__(each_process)
        check(GradientPenalty.__init__, locals())
        self.gamma, self.eps = gamma, eps

    def is_off(self) -> bool:
        """Whether gamma is 0."""
        return self.gamma == 0

    def offsets(self, gradients: By) -> By:
        """Return eps g; nothing moves if a gradient is not finite."""
        return guarded(gradients, self.eps, get_total_norm(gradients.values())) if gradients else {}

    def combine(self, gradients: By, second: By) -> By:
        """Return g + gamma (g2 - g) / eps."""
        ratio = self.gamma / self.eps
        return {p: combined(gradients.get(p), 1 - ratio, g2, ratio) for p, g2 in second.items()}


class GAM(Sharpness):
    """Gradient norm aware minimisation: a step that lowers the norm of the gradient as well.

    Four passes: g0 at w, g1 at w + rho_norm g0/||g0||, g2 at w + rho h/||h|| with h = g1 - g0, and
    g3 at that point + rho_norm g2/||g2||. With v = b1 g1 + b3 g3 and m = g0 + |b2| g2 the gradient
    is v - gamma (m - proj_v m). It needs `optimizer.step(closure)`.

    Args:
        rho: radius along the gradient of the norm.
        rho_norm: radius along the gradient.
        weights: b1, b2 and b3.
        gamma: weight of what is orthogonal to v.
        each_process: see `Sharpness`.

    Reference:
        Zhang et al. 2023, "Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves
        Generalization"; the combination is that of the authors' code.
    """

    def __init__(
        self,
        rho: NotNegative = 0.05,
        rho_norm: NotNegative = 0.05,
        weights: tuple[float, float, float] = (0.5, 0.5, 0.5),
        gamma: NotNegative = 0.1,
        each_process: bool = False,
    ) -> None:
        super().__init__(each_process)
        check(GAM.__init__, locals())
        self.rho, self.rho_norm, self.weights, self.gamma = rho, rho_norm, weights, gamma

    def offsets(self, gradients: By) -> By:
        """Refused: one pass is not enough."""
        raise RecipeError("GAM needs three further passes; use optimizer.step(closure)")

    def passes(self, gradients: By, at: Callable[[By], By]) -> By:
        """Return v - gamma (m - proj_v m)."""
        b1, b2, b3 = self.weights
        g0 = gradients
        g1 = at(scaled(g0, self.rho_norm, g0))
        h = {p: combined(g1.get(p), 1, g, -1) for p, g in g0.items()}
        there = scaled(h, self.rho, h)
        g2 = at(there)
        more = scaled(g2, self.rho_norm, g2)
        g3 = at({p: combined(there.get(p), 1, o, 1) for p, o in more.items()})
        v = {p: combined(g1.get(p), b1, g, b3) for p, g in g3.items()}
        m = {p: combined(g0.get(p), 1, g, abs(b2)) for p, g in g2.items()}
        square = get_total_norm(v.values()).square()
        products = [(m[p] * g).sum() for p, g in v.items() if p in m]
        along = torch.stack(products).sum() / square.clamp_min(torch.finfo(square.dtype).tiny)
        return {
            p: g - self.gamma * (m[p] - along.to(g.dtype) * g) if p in m else g
            for p, g in v.items()
        }


def combined(a: Tensor | None, times: float, b: Tensor, other: float) -> Tensor:
    """Return times * a + other * b, where a may be missing."""
    return b * other if a is None else a * times + b * other
